"""How long a step will take, learnt from those that have run: it turns a time budget into a token budget.

A step ≈ what its decodes take together + its prompt tokens · what one of them takes. Both are measured where they show: the decodes in
steps that hold nothing else, for each number of them; a prompt's token in what a mixed step takes beyond that. A token costs the more
the more of its prompt lies before it, so the estimate follows quickly upwards, for the sake of those who wait, and slowly downwards.
"""

from __future__ import annotations

from bisect import bisect_left, insort

MIN_CHUNK_TOKENS = 2
"""A long prompt advances by at least so many tokens in a step that it takes part in."""

_DECODE_SHARE = 0.2
_RISE, _FALL = 0.5, 0.2
"""What the latest observation counts against all that were before."""


class StepTimeModel:
    """Exponentially forgetting averages, in milliseconds."""

    __slots__ = ("_decode_ms", "_known", "_prompt_token_ms")

    def __init__(self) -> None:
        self._decode_ms: dict[int, float] = {}
        self._known: list[int] = []
        """The numbers of decodes that have been seen alone, ascending."""
        self._prompt_token_ms: float | None = None

    def observe(self, step_ms: float, num_prompt_tokens: int, num_decodes: int) -> None:
        """A step that computed ``num_prompt_tokens`` tokens of prompts and one token of ``num_decodes`` sequences."""
        if num_prompt_tokens == 0:
            before = self._decode_ms.get(num_decodes)
            if before is None:
                insort(self._known, num_decodes)
                before = step_ms
            self._decode_ms[num_decodes] = before + _DECODE_SHARE * (step_ms - before)
        elif num_prompt_tokens >= MIN_CHUNK_TOKENS:
            token_ms = max(0.1 * step_ms, step_ms - (self.decode_ms(num_decodes) or 0.0)) / num_prompt_tokens
            before = self._prompt_token_ms
            if before is None:
                self._prompt_token_ms = token_ms
            else:
                self._prompt_token_ms = before + (_RISE if token_ms > before else _FALL) * (token_ms - before)

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

    def prompt_tokens_within(self, ms: float) -> int | None:
        """Prompt tokens that take ``ms``, at least ``MIN_CHUNK_TOKENS``; ``None`` while nothing is known."""
        if self._prompt_token_ms is None:
            return None
        return max(MIN_CHUNK_TOKENS, int(ms / self._prompt_token_ms))
