"""What runs programs: ``reference`` in NumPy, ``native`` in C++. A backend is imported when it is first asked for."""

from __future__ import annotations

from octavo.backends.base import Backend
from octavo.config import BackendName


def get_backend(name: BackendName) -> Backend:
    """The backend of that name.

    Raises ``ValueError`` for an unknown name, ``ImportError`` if the native extension was not built.
    """
    match name:
        case "native":
            from octavo.backends.native import NativeBackend

            return NativeBackend()
        case "reference":
            from octavo.backends.reference import ReferenceBackend

            return ReferenceBackend()
    raise ValueError(f"backend={name!r} is invalid: choose one of native, reference")


__all__ = ["get_backend"]
