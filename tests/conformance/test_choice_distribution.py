"""Frequencies of sampled tokens against the exact distribution: Pearson's chi-squared over 20,000 positions in one batch.

A test fails if so bad a fit has a probability below 10⁻⁵; draws are a function of fixed seeds, so a pass is a pass for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import Backend, Executable

from .choices import choice_batch, slow_weights
from .programs import LittleLlama, compile_program

NUM_DRAWS = 20_000
VOCAB = 48

LIMITS = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.0, "typical_p": 0.5},
    {"temperature": 1.4, "typical_p": 0.9, "top_k": 30},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.95, "min_p": 0.02},
]


@pytest.fixture(scope="module")
def exe(backend: Backend) -> Executable:
    model = LittleLlama(vocab_size=32, hidden=32, intermediate=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32)
    return compile_program(backend, *model.build(), max_tokens=16, max_logits_rows=16)


def tail_probability(statistic: float, degrees: int) -> float:
    """P(χ² ≥ statistic), by the normal approximation of Wilson and Hilferty (1931); good to a few percent far out."""
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(z / math.sqrt(2))


def check_fit(counts: npt.NDArray[np.int64], weights: list[float]) -> None:
    expected = np.array(weights) / sum(weights) * counts.sum()
    assert counts[expected == 0].sum() == 0, "a token was drawn that is not kept"
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 8]  # pooled, so that every cell expects enough
    common = np.setdiff1d(order[expected[order] > 0], rare)
    cells = np.append(counts[common], counts[rare].sum())
    mass = np.append(expected[common], expected[rare].sum())
    cells, mass = cells[mass > 0], mass[mass > 0]
    if len(cells) == 1:
        return
    statistic = ((cells - mass) ** 2 / mass).sum()
    assert tail_probability(statistic, len(cells) - 1) > 1e-5


def exact_limits(limits: dict[str, float]) -> dict[str, float]:
    """The numbers as the backends get them: float32."""
    return {name: int(value) if name == "top_k" else float(np.float32(value)) for name, value in limits.items()}


@pytest.mark.parametrize(
    ("varied", "limits"),
    [("position", limits) for limits in LIMITS] + [("seed", LIMITS[0]), ("branch", LIMITS[0]), ("seed", LIMITS[-1])],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_frequencies(exe: Executable, varied: str, limits: dict[str, float]) -> None:
    logits = np.random.default_rng(2).normal(0, 1.5, (1, VOCAB)).astype(np.float32)
    batch = choice_batch([0] * NUM_DRAWS, **{"seed": 12345, varied: np.arange(NUM_DRAWS)}, **limits)
    counts = np.bincount(exe.choose(logits, batch).token_ids, minlength=VOCAB)
    check_fit(counts, slow_weights([float(x) for x in logits[0]], **exact_limits(limits)))


@pytest.mark.parametrize("allowed", [(), range(0, VOCAB, 3)], ids=["any", "some"])
def test_frequencies_under_penalties(exe: Executable, allowed: Sequence[int]) -> None:
    """Bias, penalties and an allowed set against softmax of the logits that the formulas give."""
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 1.5, (1, VOCAB)).astype(np.float32)
    one = {
        "edit_tokens": rng.permutation(VOCAB)[:6], "edit_values": rng.uniform(-3, 3, 6).astype(np.float32),
        "count_tokens": rng.permutation(VOCAB)[:20], "counts": rng.integers(0, 4, 20), "allowed_tokens": np.array(allowed, np.int32),
    }  # fmt: skip
    choices = {"edit_tokens": "edit_choices", "count_tokens": "count_choices", "allowed_tokens": "allowed_choices"}
    entries = {name: np.tile(values, NUM_DRAWS) for name, values in one.items()}
    entries |= {choices[name]: np.repeat(np.arange(NUM_DRAWS), len(one[name])) for name in choices}
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.3}
    token_ids = exe.choose(logits, choice_batch([0] * NUM_DRAWS, seed=3, position=range(NUM_DRAWS), **penalties, **entries)).token_ids

    x = logits[0].astype(np.float64)
    x[one["edit_tokens"]] += one["edit_values"]
    seen, counts = one["count_tokens"], one["counts"]
    x[seen] = np.where(x[seen] > 0, x[seen] / 1.3, x[seen] * 1.3)
    x[seen] -= 0.4 * counts - 0.3 * (counts > 0)
    kept = np.isin(np.arange(VOCAB), allowed) if len(allowed) else np.ones(VOCAB, bool)
    check_fit(np.bincount(token_ids, minlength=VOCAB), np.where(kept, np.exp(x), 0.0).tolist())


def test_different_rows_in_one_batch(exe: Executable) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1, (16, VOCAB)).astype(np.float32)
    rows = np.arange(NUM_DRAWS) % 16
    token_ids = exe.choose(logits, choice_batch(rows, seed=7, position=np.arange(NUM_DRAWS), top_p=0.9)).token_ids
    for row in range(16):
        counts = np.bincount(token_ids[rows == row], minlength=VOCAB)
        check_fit(counts, slow_weights([float(x) for x in logits[row]], 1.0, top_p=float(np.float32(0.9))))


def test_neighbouring_positions_are_independent(exe: Executable) -> None:
    """Pairs of draws at positions p and p + 1 over four equally likely tokens: all sixteen equally often."""
    draws = exe.choose(np.zeros((1, 4), np.float32), choice_batch([0] * NUM_DRAWS, seed=3, position=np.arange(NUM_DRAWS))).token_ids
    check_fit(np.bincount(draws[0::2] * 4 + draws[1::2], minlength=16), [1.0] * 16)


def test_a_poor_fit_is_noticed() -> None:
    """The yardstick itself: counts of a slightly different temperature do not pass."""
    logits = [float(x) for x in np.random.default_rng(2).normal(0, 1.5, VOCAB)]
    other = np.array(slow_weights(logits, 1.15))
    counts = np.random.default_rng(0).multinomial(NUM_DRAWS, other / other.sum())
    with pytest.raises(AssertionError):
        check_fit(counts, slow_weights(logits, 1.0))
