"""The backends under test. ``native`` may be missing from a source tree that is not built, but never in CI."""

from __future__ import annotations

import os

import pytest

from octavo.backends.base import Backend
from octavo.backends.reference import ReferenceBackend


def load(name: str) -> Backend:
    if name == "reference":
        return ReferenceBackend()
    try:
        from octavo.backends import get_backend

        return get_backend("native")
    except ImportError as error:
        if not os.environ.get("CI"):
            pytest.skip(f"the native extension is not built: {error}")
        raise


@pytest.fixture(scope="session", params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


@pytest.fixture(scope="session")
def native() -> Backend:
    return load("native")


@pytest.fixture(scope="session")
def reference() -> Backend:
    return load("reference")
