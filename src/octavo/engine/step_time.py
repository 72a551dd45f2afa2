"""How long a step will take, learnt from those that have run: it turns a time budget into a token budget.

A step ≈ what its decodes take together + what its prompt tokens take. The decodes are measured in steps that hold nothing else, for each
number of them. A prompt's token takes ``level + slope · depth``, where the depth is the number of tokens before it: attention reads
them all. The level follows what mixed steps take beyond their decodes, quickly upwards, for the sake of those who wait, and slowly
downwards; the slope, which belongs to the model and the machine, is the regression of that on the depth.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

MIN_CHUNK_TOKENS = 2
"""A long prompt advances by at least so many tokens in a step that it takes part in."""

_DECODE_SHARE = 0.2
_RISE, _FALL = 0.5, 0.2
_SLOPE_SHARE = 0.05
"""What the latest observation counts against all that were before."""
_DEPTH_DEVIATION = 200.0
"""Tokens: depths that vary by less than about this say little about the slope."""


class StepTimeModel:
    """Exponentially forgetting averages, in milliseconds and tokens."""

    __slots__ = ("_covariance", "_decode_ms", "_known", "_level_ms", "_mean_depth", "_mean_ms", "_slope_ms", "_variance")

    def __init__(self) -> None:
        self._decode_ms: dict[int, float] = {}
        self._known: list[int] = []
        """The numbers of decoded rows (drafts too) that have been seen alone, ascending."""
        self._level_ms: float | None = None
        self._slope_ms = 0.0
        self._mean_ms = self._mean_depth = self._variance = self._covariance = 0.0

    def observe(self, step_ms: float, num_tokens: int, chunks: Sequence[tuple[int, int]]) -> None:
        """A step of ``num_tokens`` tokens; ``chunks``: (first position, tokens) of the prompts among them. The others are decodes."""
        num_prompt_tokens = sum(count for _, count in chunks)
        num_decodes = num_tokens - num_prompt_tokens
        if num_prompt_tokens == 0:
            before = self._decode_ms.get(num_decodes)
            if before is None:
                insort(self._known, num_decodes)
                before = step_ms
            self._decode_ms[num_decodes] = before + _DECODE_SHARE * (step_ms - before)
        else:
            token_ms = max(0.1 * step_ms, step_ms - (self.decode_ms(num_decodes) or 0.0)) / num_prompt_tokens
            self._observe_token(token_ms, sum(count * (start + count / 2) for start, count in chunks) / num_prompt_tokens)

    def _observe_token(self, token_ms: float, depth: float) -> None:
        if self._level_ms is None:
            self._level_ms, self._mean_ms, self._mean_depth = token_ms, token_ms, depth
            return
        off_ms, off_depth = token_ms - self._mean_ms, depth - self._mean_depth
        self._mean_ms += _SLOPE_SHARE * off_ms
        self._mean_depth += _SLOPE_SHARE * off_depth
        self._variance = (1 - _SLOPE_SHARE) * (self._variance + _SLOPE_SHARE * off_depth**2)
        self._covariance = (1 - _SLOPE_SHARE) * (self._covariance + _SLOPE_SHARE * off_depth * off_ms)
        prior = _DEPTH_DEVIATION**2
        slope_ms = max(0.0, (self._covariance + prior * self._slope_ms) / (self._variance + prior))
        level_ms = self._level_ms + (self._slope_ms - slope_ms) * depth  # the same expectation at this depth
        off_ms = token_ms - slope_ms * depth - level_ms
        self._level_ms = level_ms + (_RISE if off_ms > 0 else _FALL) * off_ms
        self._slope_ms = slope_ms

    def decode_ms(self, num_decodes: int) -> float | None:
        """What a step of that many decodes takes; ``None`` while nothing is known.

        Between numbers that were seen it lies on a line; it is proportional below them and flat above, which is less than it takes, as
        weights are read once for all.
        """
        if num_decodes == 0:
            return 0.0
        if (seen := self._decode_ms.get(num_decodes)) is not None or not self._known:
            return seen
        at = bisect_left(self._known, num_decodes)
        if at == len(self._known):
            return self._decode_ms[self._known[-1]]
        above = self._known[at]
        below, below_ms = (self._known[at - 1], self._decode_ms[self._known[at - 1]]) if at else (0, 0.0)
        return below_ms + (self._decode_ms[above] - below_ms) * (num_decodes - below) / (above - below)

    def prompt_tokens_within(self, ms: float, depth: float = 0.0) -> int | None:
        """Prompt tokens, the first at ``depth``, that take ``ms``; at least ``MIN_CHUNK_TOKENS``, ``None`` while nothing is known."""
        if self._level_ms is None:
            return None
        first_ms = max(self._level_ms + self._slope_ms * depth, 1e-6)
        num_tokens = 2 * max(0.0, ms) / (first_ms + math.sqrt(first_ms**2 + 2 * self._slope_ms * max(0.0, ms)))
        return max(MIN_CHUNK_TOKENS, int(num_tokens))
