"""Loading: how large the cache becomes, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from octavo import EngineConfig
from octavo.engine import loader

BLOCK_BYTES = 1000
PROGRAM = cast(Any, SimpleNamespace(max_model_len=160))
EXECUTABLE = cast(Any, SimpleNamespace(kv_block_bytes=BLOCK_BYTES))


@pytest.mark.parametrize(
    ("available", "config", "num_blocks"),
    [
        (100 * BLOCK_BYTES, {"memory_fraction": 0.25}, 25),
        (10**9, {"max_num_seqs": 3}, 30),  # no more than all sequences at full length can fill
        (0, {"kv_cache_memory_bytes": 7999}, 7),
        (None, {"max_num_seqs": 1}, 10),
    ],
)
def test_size_of_the_cache(monkeypatch: pytest.MonkeyPatch, available: int | None, config: dict[str, Any], num_blocks: int) -> None:
    monkeypatch.setattr(loader, "available_memory_bytes", lambda: available)
    assert loader._num_blocks(EngineConfig(**config), PROGRAM, EXECUTABLE) == num_blocks


@pytest.mark.parametrize("available", [0, 4 * BLOCK_BYTES])
def test_no_memory_left_is_an_error(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(loader, "available_memory_bytes", lambda: available)
    with pytest.raises(MemoryError, match=r"memory_fraction=0.25"):
        loader._num_blocks(EngineConfig(), PROGRAM, EXECUTABLE)


def test_a_tokenizer_that_knows_too_few_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_tokenizer", lambda checkpoint: SimpleNamespace(vocab_size=49000))
    with pytest.raises(ValueError, match=r"49000 tokens.*49152"):
        loader.load_model(EngineConfig(kv_cache_memory_bytes=1 << 22, max_model_len=64))
