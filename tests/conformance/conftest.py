"""The backends under test. ``native`` may be missing from a source tree that is not built, but never in CI."""

from __future__ import annotations

import os

import pytest

from octavo.backends import get_backend
from octavo.backends.base import Backend


def load(name: str) -> Backend:
    try:
        return get_backend(name)  # type: ignore[arg-type]
    except ImportError as error:
        if name == "native" and not os.environ.get("CI"):
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
