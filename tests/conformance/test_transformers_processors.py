"""The choice rule against transformers' logits processors (``scripts/golden_processors.py``): repetition penalty and typical sampling.

A draw shows only one token, but hundreds of them, at known points of the cumulative distribution, show the distribution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend, Executable
from octavo.backends.reference.philox import uniform

from .choices import choice_batch
from .programs import LittleLlama, compile_program

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "processors.npz")
NUM_DRAWS = 400
SEED = 77


@pytest.fixture(scope="module")
def exe(backend: Backend) -> Executable:
    model = LittleLlama(vocab_size=32, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    return compile_program(backend, *model.build(), max_tokens=16, max_logits_rows=16)


def check_draws(exe: Executable, row: int, scores: npt.NDArray[np.float64], **fields: Any) -> None:
    """Draws from golden row ``row`` are those from softmax of ``scores``; a draw within rounding of a boundary may go either way."""
    logits = GOLDEN["logits"][row : row + 1]
    tokens = exe.choose(logits, choice_batch([0] * NUM_DRAWS, seed=SEED, position=range(NUM_DRAWS), **fields)).token_ids
    cumulative = np.cumsum(np.exp(scores - scores.max()))
    points = np.array([uniform(SEED, 0, position) for position in range(NUM_DRAWS)]) * cumulative[-1]
    slack = 1e-5 * cumulative[-1]
    assert (np.searchsorted(cumulative, points - slack, side="right") <= tokens).all()
    assert (tokens <= np.searchsorted(cumulative, points + slack, side="right")).all()


@pytest.mark.parametrize("index", range(len(GOLDEN["penalties"])))
def test_repetition_penalty(exe: Executable, index: int) -> None:
    for row, token_ids in enumerate(GOLDEN["token_ids"]):
        seen, counts = np.unique(token_ids, return_counts=True)
        entries = {
            "count_choices": np.repeat(np.arange(NUM_DRAWS), len(seen)),
            "count_tokens": np.tile(seen, NUM_DRAWS),
            "counts": np.tile(counts - 1, NUM_DRAWS),  # once in the prompt
        }
        penalized = GOLDEN["penalized"][index, row].astype(np.float64)
        check_draws(exe, row, penalized, repetition_penalty=GOLDEN["penalties"][index], **entries)


@pytest.mark.parametrize("index", range(len(GOLDEN["masses"])))
@pytest.mark.parametrize("kept", ["typical", "typical_of_top_k"])
def test_typical_sampling(exe: Executable, kept: str, index: int) -> None:
    limits = {"typical_p": GOLDEN["masses"][index], "top_k": int(GOLDEN["top_k"]) if kept == "typical_of_top_k" else 0}
    for row, logits in enumerate(GOLDEN["logits"]):
        check_draws(exe, row, np.where(GOLDEN[kept][index, row], logits.astype(np.float64), -np.inf), **limits)
