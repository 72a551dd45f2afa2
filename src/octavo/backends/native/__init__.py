"""The ``native`` backend: programs lowered to instructions that C++ kernels run, a whole step in one call."""

from octavo.backends.native.executable import NativeBackend, NativeExecutable
from octavo.backends.native.packed_cache import PackedCache, forget_packed

__all__ = ["NativeBackend", "NativeExecutable", "PackedCache", "forget_packed"]
