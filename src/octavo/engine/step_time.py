"""How long a step will take, learnt from those that have run: it turns a time budget into a token budget.

A step ≈ what its decodes take together + what its prompts' chunks take. The decodes are measured in steps that hold nothing else, for
each number of them. A chunk of ``n`` tokens with ``d`` tokens before it takes ``level · n + slope · (n + READING_TOKENS) · d``: the linear
layers work on every token, attention reads what lies before once for the chunk and computes with it for each token. Level and slope belong
to the model and the machine, and are learnt from what mixed steps take beyond their decodes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

MIN_CHUNK_TOKENS = 4
"""A long prompt advances by at least so many tokens in a step that it takes part in."""

READING_TOKENS = 3
"""What lies before is read once for a chunk, which takes attention about as long as computing with it for so many tokens."""

_DECODE_SHARE = 0.2
"""What the latest observation counts against all that were before."""


class ChunkCost:
    """A Kalman filter for ``(level, slope)``, which walk at random: together, as a machine becomes faster or slower, and each.

    It forgets what is contradicted, and only that: what no observation says anything about (the level, while all chunks lie deep)
    stays as it was. It follows faster upwards than downwards, for the sake of those who wait. Milliseconds and tokens.
    """

    __slots__ = ("_covariance", "level_ms", "slope_ms")

    TOGETHER, EACH = 0.05, 0.01
    """Standard deviations of a step of the walk, as shares."""
    SLOWER, FASTER = 0.1, 0.2
    """Standard deviations of a step's time above and below what is expected, as shares of that."""
    SPREAD = 1 / 1000
    """How far a slope is from 0 before anything is known of it, in levels."""

    def __init__(self, ms: float, chunks: Sequence[tuple[int, int]]) -> None:
        self.level_ms = ms / sum(count for _, count in chunks)
        self.slope_ms = 0.0
        self._covariance = (self.level_ms**2, 0.0, (self.SPREAD * self.level_ms) ** 2)

    def observe(self, ms: float, chunks: Sequence[tuple[int, int]], decode_ms: float) -> None:
        """``chunks``, (first position, tokens) of each, took ``ms`` together, beside decodes that took ``decode_ms``."""
        tokens = sum(count for _, count in chunks)
        depths = sum(READING_TOKENS * start + count * (start + count / 2) for start, count in chunks)
        expected_ms = self.level_ms * tokens + self.slope_ms * depths
        error_ms = min(ms - expected_ms, 2 * expected_ms)  # one step may have been held up by something else
        noise_ms = (self.SLOWER if error_ms > 0 else self.FASTER) * (decode_ms + expected_ms)
        each = (self.EACH * self.level_ms) ** 2
        level, both, slope = self._covariance
        level += (self.TOGETHER * self.level_ms) ** 2 + each
        both += self.TOGETHER**2 * self.level_ms * self.slope_ms
        slope += (self.TOGETHER * self.slope_ms) ** 2 + each * self.SPREAD**2
        to_level, to_slope = level * tokens + both * depths, both * tokens + slope * depths
        variance = to_level * tokens + to_slope * depths + noise_ms**2
        self._covariance = (level - to_level**2 / variance, both - to_level * to_slope / variance, slope - to_slope**2 / variance)
        self.level_ms = max(self.level_ms + to_level * error_ms / variance, 0.5 * self.level_ms)
        self.slope_ms = max(self.slope_ms + to_slope * error_ms / variance, 0.0)

    def tokens_within(self, ms: float, depth: int) -> int:
        """Tokens of a chunk after ``depth`` others that takes ``ms``."""
        first_ms = self.level_ms + self.slope_ms * depth
        rest_ms = max(0.0, ms - READING_TOKENS * self.slope_ms * depth)
        return round(2 * rest_ms / (first_ms + math.sqrt(first_ms**2 + 2 * self.slope_ms * rest_ms)))


class StepTimeModel:
    """What decodes take together, by exponentially forgetting averages, and what chunks of prompts take beside them."""

    __slots__ = ("_chunk_cost", "_decode_ms", "_known")

    def __init__(self) -> None:
        self._decode_ms: dict[int, float] = {}
        self._known: list[int] = []
        """The numbers of decoded rows (drafts too) that have been seen alone, ascending."""
        self._chunk_cost: ChunkCost | None = None

    def observe(self, step_ms: float, num_tokens: int, chunks: Sequence[tuple[int, int]]) -> None:
        """A step of ``num_tokens`` tokens; ``chunks``: (first position, tokens) of the prompts among them. The others are decodes."""
        num_decodes = num_tokens - sum(count for _, count in chunks)
        if not chunks:
            before = self._decode_ms.get(num_decodes)
            if before is None:
                insort(self._known, num_decodes)
                before = step_ms
            self._decode_ms[num_decodes] = before + _DECODE_SHARE * (step_ms - before)
            return
        chunks_ms = max(0.1 * step_ms, step_ms - (self.decode_ms(num_decodes) or 0.0))
        if self._chunk_cost is None:
            self._chunk_cost = ChunkCost(chunks_ms, chunks)
        else:
            self._chunk_cost.observe(chunks_ms, chunks, step_ms - chunks_ms)

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

    def prompt_tokens_within(self, ms: float, depth: int = 0) -> int | None:
        """Tokens of a prompt, after ``depth`` others, that take ``ms``; at least ``MIN_CHUNK_TOKENS``, ``None`` while nothing is known."""
        return None if self._chunk_cost is None else max(MIN_CHUNK_TOKENS, self._chunk_cost.tokens_within(ms, depth))
