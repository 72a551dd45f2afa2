"""Token choice, by the rule that ``ChoiceBatch`` states: one row at a time, in the rule's own order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.backends.base import ChoiceBatch, Choices, Float32Array
from octavo.backends.reference.kv import Float64Array
from octavo.backends.reference.philox import uniform

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rule:
    """One choice's parameters, as in ``ChoiceBatch``."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    seed: int
    branch: int
    position: int


def kept_weights(logits: Float32Array, rule: Rule) -> Float64Array:
    """The (V,) weights that a draw at a temperature above 0 is proportional to; 0 where a token is not kept.

    ``logits``: adjusted, without NaN and with at least one above -inf.
    """
    largest = logits.max()
    z = np.where(logits == largest, 0.0, logits.astype(np.float64) - largest) / rule.temperature  # ≤ 0
    weights = np.exp(z)
    kept: BoolArray = np.ones(len(z), np.bool_)
    if rule.min_p > 0:
        kept &= weights >= rule.min_p  # the largest weight is 1
    if 0 < rule.top_k < len(z):
        kept &= logits >= np.partition(logits, -rule.top_k)[-rule.top_k]
    if rule.top_p < 1:
        kept &= nucleus(logits, np.where(kept, weights, 0.0), rule.top_p)
    if rule.typical_p < 1:
        kept &= typical(logits, np.where(kept, weights, 0.0), rule.typical_p)
    return np.where(kept, weights, 0.0)


def nucleus(logits: Float32Array, weights: Float64Array, top_p: float) -> BoolArray:
    """The smallest set of most probable tokens, ties by lower id, whose share of the total weight reaches top_p."""
    order = np.lexsort((np.arange(len(logits)), -logits, -weights))  # by weight, then logit, then id
    cumulative = np.cumsum(weights[order])
    size = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    kept: BoolArray = np.zeros(len(logits), np.bool_)
    kept[order[:size]] = True
    return kept


def typical(logits: Float32Array, weights: Float64Array, typical_p: float) -> BoolArray:
    """The smallest set of most typical tokens, ties by lower id, whose share of the total weight reaches typical_p.

    Information and entropy, -x / T + ln Σw and -Σ p x / T + ln Σw, differ in proportion to the distance of ``logits`` from their mean.
    """
    candidates = np.flatnonzero(weights > 0)
    w = weights[candidates]
    x = logits[candidates].astype(np.float64) - logits.max()
    distance = np.abs(x - np.sum(w * x) / np.sum(w))
    order = np.lexsort((candidates, distance))
    cumulative = np.cumsum(w[order])
    size = int(np.searchsorted(cumulative, typical_p * cumulative[-1], side="left")) + 1
    kept: BoolArray = np.zeros(len(weights), np.bool_)
    kept[candidates[order[:size]]] = True
    return kept


def adjusted(logits: Float32Array, batch: ChoiceBatch, r: int) -> Float32Array:
    """The (V,) logits of choice r after the allowed set, the edits and the penalties."""

    def entries(choices: npt.NDArray[np.int32]) -> range:
        return range(*np.searchsorted(choices, [r, r + 1]).tolist())

    row: Float32Array = logits[batch.rows[r]].copy()
    if allowed := entries(batch.allowed_choices):
        if np.isnan(row).any() or np.isposinf(row).any():
            return np.full_like(row, np.nan)  # a fault stays one, wherever it is
        forbidden = np.ones(len(row), np.bool_)
        forbidden[batch.allowed_tokens[allowed]] = False
        row[forbidden] = -np.inf
    for e in entries(batch.edit_choices):
        row[batch.edit_tokens[e]] += batch.edit_values[e]
    repetition = _value(batch.repetition_penalty, r, 1.0)
    frequency, presence = _value(batch.frequency_penalty, r, 0.0), _value(batch.presence_penalty, r, 0.0)
    for c in entries(batch.count_choices):
        token, count = batch.count_tokens[c], batch.counts[c]
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
        if count > 0:
            row[token] -= frequency * np.float32(count)
            row[token] -= presence
    return row


def _value(values: Float32Array, r: int, default: float) -> np.float32:
    return np.float32(values[r] if len(values) else default)


def choose_token(logits: Float32Array, rule: Rule) -> int:
    """The chosen id, or -1 if there is a NaN, an infinite logit or nothing to choose. ``logits``: (V,), adjusted."""
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        return -1
    if rule.temperature == 0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(kept_weights(logits, rule))
    return int(np.searchsorted(cumulative, uniform(rule.seed, rule.branch, rule.position) * cumulative[-1], side="right"))


def log_softmax(logits: Float32Array) -> Float64Array:
    z = logits.astype(np.float64)
    largest = z.max()
    logprobs: Float64Array = z - largest - np.log(np.sum(np.exp(z - largest)))
    return logprobs


def choose(logits: Float32Array, batch: ChoiceBatch) -> Choices:
    """All choices of a batch that ``check_choices`` has passed."""
    num = len(batch.rows)
    width = max(0, int(batch.num_logprobs.max(initial=0)))
    out = Choices(
        token_ids=np.full(num, -1, np.int32),
        logprobs=np.full(num, np.nan, np.float32),
        ranks=np.zeros(num, np.int32),
        top_ids=np.full((num, width), -1, np.int32),
        top_logprobs=np.full((num, width), np.nan, np.float32),
    )
    for r in range(num):
        given = logits[(batch.report_rows if len(batch.report_rows) else batch.rows)[r]]
        rule = Rule(
            float(batch.temperature[r]), int(batch.top_k[r]), float(batch.top_p[r]), float(batch.min_p[r]),
            float(_value(batch.typical_p, r, 1.0)), int(batch.seed[r]), int(batch.branch[r]), int(batch.position[r]),
        )  # fmt: skip
        token = out.token_ids[r] = choose_token(adjusted(logits, batch, r), rule)
        if token < 0 or batch.num_logprobs[r] < 0:
            continue
        logprobs = log_softmax(given)
        order = np.argsort(-given, kind="stable")  # most probable first, ties by lower id
        top = order[: batch.num_logprobs[r]]
        out.logprobs[r] = logprobs[token]
        out.ranks[r] = 1 + int(np.count_nonzero(given > given[token])) + int(np.count_nonzero(given[:token] == given[token]))
        out.top_ids[r, : len(top)] = top
        out.top_logprobs[r, : len(top)] = logprobs[top]
    return out
