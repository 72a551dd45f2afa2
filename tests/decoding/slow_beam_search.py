"""Beam search a second time, over whole arrays: the steps of ``transformers``' ``_beam_search`` for one prompt, in NumPy and float64.

Every step forms all ``beams · vocabulary`` continuations. Beams that do not exist yet, and texts that are not finished, are rows with
a score of -1e9, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
NOTHING = -1.0e9


def slow_beam_search(
    logits: Callable[[list[int]], npt.NDArray[Any]],
    width: int,
    max_tokens: int,
    *,
    ending_ids: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    completes: Callable[[list[int]], bool] = lambda tokens: False,
) -> list[tuple[list[int], float]]:
    """(generated tokens, score) of the finished texts, best first. ``logits``: (V,) after some generated tokens."""
    num_candidates = max(2, 1 + len(ending_ids)) * width
    beams: list[list[int]] = [[]] * width
    beam_scores = np.array([0.0] + [NOTHING] * (width - 1))
    texts: list[list[int]] = [[]] * width
    scores = np.full(width, NOTHING)
    finished = np.zeros(width, np.bool_)
    for length in range(1, max_tokens + 1):
        continuations = np.stack([score + _log_softmax(logits(beam)) for beam, score in zip(beams, beam_scores, strict=True)])
        if length - 1 < min_tokens:
            continuations[:, sorted(ending_ids)] = -np.inf
        vocab_size = continuations.shape[1]
        best = np.argsort(-continuations.reshape(-1), kind="stable")[:num_candidates]
        totals = continuations.reshape(-1)[best]
        candidates = [[*beams[i // vocab_size], int(i % vocab_size)] for i in best]
        stops = np.array([c[-1] in ending_ids or completes(c) or length == max_tokens for c in candidates])

        onward = np.argsort(-(totals + stops * NOTHING), kind="stable")[:width]
        ended = stops & (np.arange(num_candidates) < width)
        merged = np.concatenate([scores, totals / length**length_penalty + ~ended * NOTHING])
        kept = np.argsort(-merged, kind="stable")[:width]
        texts = [(texts + candidates)[i] for i in kept]
        scores, finished = merged[kept], np.concatenate([finished, ended])[kept]
        beams = [candidates[i] for i in onward]
        beam_scores = (totals + stops * NOTHING)[onward]

        hypothetical = max_tokens if early_stopping == "never" and length_penalty > 0 else length
        worst = np.where(finished, scores.min(), NOTHING)
        can_improve = (beam_scores[0] / hypothetical**length_penalty > worst).any()
        if not can_improve or (finished.all() and early_stopping is True) or stops.all():
            break
    return [(text, float(score)) for text, score, done in zip(texts, scores, finished, strict=True) if done and score > NOTHING / 1e3]


def _log_softmax(logits: npt.NDArray[Any]) -> Float64Array:
    z = logits.astype(np.float64)
    result: Float64Array = z - z.max() - np.log(np.exp(z - z.max()).sum())
    return result
