"""For every room: the default model, fetched once into the user's cache, and how hypothesis behaves on a busy machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from octavo.weights import Checkpoint, open_checkpoint, resolve

settings.register_profile("octavo", deadline=None, print_blob=True)
settings.load_profile("octavo")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct's Q4_1 GGUF file, pulled into the cache if it is not there yet."""
    return resolve("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Checkpoint:
    return open_checkpoint(smollm2_path)
