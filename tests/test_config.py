"""Configuration is refused by field, value and what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import EngineConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""), ("backend", "gpu"), ("kv_cache_dtype", "int3"), ("kv_cache_memory_bytes", 0), ("memory_fraction", 0.0),
        ("memory_fraction", 1.5), ("max_model_len", 1), ("max_num_seqs", 0), ("max_num_batched_tokens", 63), ("max_step_ms", 0),
        ("num_threads", 0), ("num_threads", 257),
        ("quantization", "int2"), ("max_num_seqs", "4"), ("max_num_seqs", 1.5), ("kv_cache_memory_bytes", "1G"), ("seed", "x"),
    ],
)  # fmt: skip
def test_invalid_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        EngineConfig(**{field: value})


def test_an_unknown_argument_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'max_seqs'.*max_num_seqs"):
        EngineConfig.from_kwargs(max_seqs=3)


def test_threads_default_to_the_cores_there_are() -> None:
    assert EngineConfig().threads >= 1
    assert EngineConfig(num_threads=3).threads == 3
