"""A Hugging Face directory through the family and a backend: transformers' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.backends import get_backend
from octavo.backends.base import CompileOptions, StepInput
from octavo.models import build_program
from octavo.weights import Checkpoint, open_checkpoint, quantized

TINY_LLAMA = Path(__file__).parents[1] / "weights" / "data" / "tiny_llama"


def logits(checkpoint: Checkpoint, backend: str, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(sequences, positions, vocabulary) of whole prompts (sequences, tokens) in one step."""
    count, length = ids.shape
    program = build_program(checkpoint)
    options = CompileOptions(
        block_size=16,
        kv_dtype="fp32",
        max_tokens=ids.size,
        max_logits_rows=count * len(positions),
        max_model_len=program.max_model_len,
        num_threads=1,
    )
    executable = get_backend(backend).compile(program, checkpoint.tensors, options)
    num_blocks = -(-length // 16)
    executable.allocate_kv(count * num_blocks)
    tables = np.arange(count * num_blocks, dtype=np.int32).reshape(count, num_blocks)
    at = np.arange(length)
    step = StepInput(
        token_ids=ids.reshape(-1).astype(np.int32),
        positions=np.tile(at, count).astype(np.int32),
        query_start_loc=np.arange(count + 1, dtype=np.int32) * length,
        seq_lens=np.full(count, length, np.int32),
        block_tables=tables,
        slot_mapping=(tables[:, at // 16].astype(np.int64) * 16 + at % 16).reshape(-1),
        logits_rows=(np.arange(count)[:, None] * length + positions).reshape(-1).astype(np.int32),
    )
    return np.asarray(executable.run(step)).reshape(count, len(positions), -1)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_the_same_logits_as_transformers(backend: str) -> None:
    with np.load(TINY_LLAMA / "golden.npz") as golden:
        found = logits(open_checkpoint(TINY_LLAMA), backend, golden["ids"], golden["positions"])
        assert np.abs(found - golden["logits"]).max() < 5e-5


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.15), ("int8-channel", 0.2), ("int4", 1.0)])
def test_quantised_at_load(quantization: str, bound: float) -> None:
    """Both backends agree on the integers' logits, which lie near the original's.

    The bound is on the root mean square over logits of standard deviation 1.55; a random model amplifies every rounding.
    """
    with np.load(TINY_LLAMA / "golden.npz") as golden:
        checkpoint = quantized(open_checkpoint(TINY_LLAMA), quantization)  # type: ignore[arg-type]
        native, reference = (logits(checkpoint, backend, golden["ids"], golden["positions"]) for backend in ("native", "reference"))
        assert np.abs(native - reference).max() < 0.4
        assert np.sqrt(np.mean((native - golden["logits"]) ** 2)) < bound
