"""The Llama family reads its hyperparameters, and refuses by key and value what it cannot run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from octavo.models import build_program
from octavo.program import Rope, RopeStyle
from octavo.weights import Checkpoint, Tensor, TensorType


def checkpoint(**keys: Any) -> Checkpoint:
    metadata = {
        "llama.block_count": 2, "llama.context_length": 256, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    metadata |= {name.replace("__", "."): value for name, value in keys.items()}
    extra = metadata.pop("extra", None)
    embedding = Tensor("token_embd.weight", TensorType.F32, (50, 64), np.zeros((50, 256), np.uint8))
    return cast(
        Checkpoint,
        SimpleNamespace(
            path=Path("model.gguf"),
            architecture=metadata.pop("architecture", "llama"),
            metadata={key: value for key, value in metadata.items() if value is not None},
            tensors=_tensors(embedding, extra),
            fingerprint="0",
        ),
    )


def _tensors(embedding: Tensor, extra: str | None) -> dict[str, Tensor]:
    layer = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    names = ["output_norm.weight", *(f"blk.{i}.{name}.weight" for i in range(2) for name in layer), *([extra] if extra else [])]
    return {"token_embd.weight": embedding} | {name: replace(embedding, name=name) for name in names}


def test_the_program_has_the_file_s_shape() -> None:
    program = build_program(checkpoint(), max_model_len=100)
    assert (program.vocab_size, program.max_model_len) == (50, 100)
    assert (program.kv.num_layers, program.kv.num_kv_heads, program.kv.head_dim) == (2, 2, 16)
    assert program.weights["blk.1.ffn_down.weight"] == (64, 96)
    assert build_program(checkpoint()).max_model_len == 256


def test_rotation_follows_the_keys() -> None:
    plain = next(op for op in build_program(checkpoint()).ops if isinstance(op, Rope))
    assert plain.style is RopeStyle.INTERLEAVED
    assert plain.inv_freq == pytest.approx([10000.0 ** (-2 * i / 16) for i in range(8)])
    linear = checkpoint(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0, octavo__rope_style="half_split")
    scaled = next(op for op in build_program(linear).ops if isinstance(op, Rope))
    assert scaled.style is RopeStyle.HALF_SPLIT
    assert scaled.inv_freq == pytest.approx([f / 4 for f in plain.inv_freq])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architecture": "mamba"}, "'mamba' is not supported"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": 0}, "llama.block_count=0"),
        ({"llama__attention__head_count": "many"}, "llama.attention.head_count='many'"),
        ({"llama__attention__head_count_kv": 3}, "not a multiple"),
        ({"llama__attention__sliding_window": 128}, "sliding windows"),
        ({"extra": "blk.0.attn_q.bias"}, "attn_q.bias"),
        ({"llama__block_count": 3}, "'blk.2.attn_norm.weight' is missing"),
        ({"llama__expert_count": 8}, "mixtures of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn'"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon=nan"),
    ],
)
def test_what_cannot_run_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_program(checkpoint(**keys))
