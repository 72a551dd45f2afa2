"""The backends under test: ``reference``, and ``native`` once for every ISA family that this machine can run.

``native`` may be missing from a source tree that is not built, but never in CI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from octavo.backends import get_backend
from octavo.backends.base import Backend, CompileOptions, Executable
from octavo.backends.reference import ReferenceBackend
from octavo.program import Program
from octavo.weights.tensor import Tensor

NOT_BUILT = "native, which is not built"


def native_families() -> list[str]:
    try:
        from octavo._native import isa_families
    except ImportError:
        return [NOT_BUILT]
    return [str(name) for name in isa_families()]


class NativeFamily(Backend):
    """``native`` with the kernels of one ISA family."""

    def __init__(self, family: str) -> None:
        self.name = f"native-{family}"
        self._family = family
        self._native = get_backend("native")

    def compile(self, program: Program, tensors: Mapping[str, Tensor], options: CompileOptions) -> Executable:
        from octavo.backends.native.executable import ISA_VARIABLE

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ISA_VARIABLE, self._family)
            exe = self._native.compile(program, tensors, options)
        assert exe.isa == self._family
        return exe


def load(name: str) -> Backend:
    if name == "reference":
        return ReferenceBackend()
    if name == NOT_BUILT and not os.environ.get("CI"):
        pytest.skip("the native extension is not built")
    return NativeFamily(name)


@pytest.fixture(scope="session", params=["reference", *native_families()])
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


@pytest.fixture(scope="session", params=native_families())
def native(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


@pytest.fixture(scope="session")
def reference() -> Backend:
    return load("reference")
