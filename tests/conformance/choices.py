"""``choice_batch`` fills in what a test does not care about; ``slow_choice`` is the rule once more, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.backends.base import ChoiceBatch

_DEFAULTS: dict[str, tuple[Any, float]] = {
    "temperature": (np.float32, 1.0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "seed": (np.uint64, 0),
    "branch": (np.uint32, 0),
    "position": (np.uint32, 0),
    "num_logprobs": (np.int32, -1),
}
_OPTIONAL: dict[str, Any] = {
    "typical_p": np.float32,
    "repetition_penalty": np.float32,
    "frequency_penalty": np.float32,
    "presence_penalty": np.float32,
    "report_rows": np.int32,
}
_ENTRIES: dict[str, Any] = {
    "edit_choices": np.int32,
    "edit_tokens": np.int32,
    "edit_values": np.float32,
    "count_choices": np.int32,
    "count_tokens": np.int32,
    "counts": np.int32,
    "allowed_choices": np.int32,
    "allowed_tokens": np.int32,
}


def choice_batch(rows: Any, **fields: Any) -> ChoiceBatch:
    """Scalars are spread over all choices; without a word, everything is kept and temperature is 1."""
    rows = np.array(rows, np.int32)
    given = {
        name: np.ascontiguousarray(np.broadcast_to(np.asarray(fields.pop(name, default), dtype), rows.shape))
        for name, (dtype, default) in _DEFAULTS.items()
    }
    given |= {
        name: np.ascontiguousarray(np.broadcast_to(np.asarray(fields.pop(name), dtype), rows.shape))
        for name, dtype in _OPTIONAL.items()
        if name in fields
    }
    entries = {name: np.array(fields.pop(name, []), dtype) for name, dtype in _ENTRIES.items()}
    assert not fields, f"unknown fields {list(fields)}"
    return ChoiceBatch(rows, **given, **entries)


def alone(batch: ChoiceBatch, r: int) -> ChoiceBatch:
    """Choice r as a batch of its own."""
    single = {name: getattr(batch, name)[r : r + 1] for name in ("rows", *_DEFAULTS, *_OPTIONAL) if len(getattr(batch, name))}
    for name in _ENTRIES:
        mine = getattr(batch, f"{name.split('_')[0].removesuffix('s')}_choices") == r
        single[name] = np.zeros(mine.sum(), np.int32) if name.endswith("choices") else getattr(batch, name)[mine]
    return ChoiceBatch(**single)


def slow_adjusted(logits: Sequence[float], batch: ChoiceBatch, r: int) -> list[float]:
    """One row after allowed set, edits and penalties of choice r: lists, and fp32 after each operation."""
    single = alone(batch, r)

    def setting(name: str, neutral: float) -> float:
        values = getattr(single, name)
        return float(values[0]) if len(values) else neutral

    row = [float(x) for x in logits]
    if len(single.allowed_tokens):
        allowed = set(single.allowed_tokens.tolist())
        row = [x if i in allowed else -math.inf for i, x in enumerate(row)]
    for token, value in zip(single.edit_tokens.tolist(), single.edit_values.tolist(), strict=True):
        row[token] = float(np.float32(row[token] + value))
    repetition = setting("repetition_penalty", 1.0)
    frequency, presence = setting("frequency_penalty", 0.0), setting("presence_penalty", 0.0)
    for token, count in zip(single.count_tokens.tolist(), single.counts.tolist(), strict=True):
        x = float(np.float32(row[token] / repetition if row[token] > 0 else row[token] * repetition))
        if count:
            x = float(np.float32(x - float(np.float32(frequency * count))))
            x = float(np.float32(x - presence))
        row[token] = x
    return row


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 as the paper's algorithm box has it."""
    c, k = list(counter), list(key)
    for i in range(10):
        if i:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def slow_weights(
    logits: Sequence[float], temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0
) -> list[float]:
    """What a draw is proportional to, token by token: sorted lists and ``math.exp``."""
    largest = max(logits)
    weight = [math.exp((x - largest) / temperature) for x in logits]
    kept = set(range(len(logits)))
    if min_p > 0:
        kept = {i for i in kept if weight[i] >= min_p}
    if 0 < top_k < len(logits):
        threshold = sorted(logits, reverse=True)[top_k - 1]
        kept = {i for i in kept if logits[i] >= threshold}
    if top_p < 1:
        total = math.fsum(weight[i] for i in kept)
        nucleus, mass = set(), 0.0
        for i in sorted(kept, key=lambda i: (-logits[i], i)):
            if mass >= top_p * total:
                break
            nucleus.add(i)
            mass += weight[i]
        kept = nucleus
    if typical_p < 1:  # transformers' TypicalLogitsWarper, with ties cut by id
        total = math.fsum(weight[i] for i in kept)
        p = {i: weight[i] / total for i in kept if weight[i] > 0}
        entropy = -math.fsum(x * math.log(x) for x in p.values())
        typical, mass = set(), 0.0
        for i in sorted(p, key=lambda i: (round(abs(-math.log(p[i]) - entropy), 9), i)):
            if mass >= typical_p:
                break
            typical.add(i)
            mass += p[i]
        kept = typical
    return [weight[i] if i in kept else 0.0 for i in range(len(logits))]


def slow_choice(logits: Sequence[float], temperature: float, seed: int = 0, branch: int = 0, position: int = 0, **limits: Any) -> int:
    """The chosen id of one row of logits, edits already added; -1 if there is none."""
    if any(math.isnan(x) for x in logits) or all(x == -math.inf for x in logits):
        return -1
    if temperature == 0:
        return max(range(len(logits)), key=lambda i: (logits[i], -i))
    weight = slow_weights(logits, temperature, **limits)
    x0, x1, _, _ = philox([position, branch, 0, 0], [seed % 2**32, seed >> 32])
    u = ((x0 * 2**32 + x1) >> 11) / 2**53
    target, mass = u * math.fsum(weight), 0.0
    for i, w in enumerate(weight):
        mass += w
        if mass > target:
            return i
    raise AssertionError("the cumulative weights fall short of the draw")
