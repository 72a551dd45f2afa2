"""How long a step will take, learnt from those that have run: it turns a time budget into a token budget."""

from __future__ import annotations

MIN_CHUNK_TOKENS = 16
"""A long prompt advances by at least so many tokens in every step."""


class StepTimeModel:
    """step time ≈ decode time + prompt tokens · time per prompt token, both exponentially forgetting averages."""

    __slots__ = ("_decode_ms", "_forget", "_prompt_token_ms")

    def __init__(self, forget: float = 0.2) -> None:
        self._forget = forget
        self._decode_ms: float | None = None
        self._prompt_token_ms: float | None = None

    def observe(self, step_ms: float, num_prompt_tokens: int, num_decodes: int) -> None:
        """A step that computed ``num_prompt_tokens`` tokens of prompts and one token of ``num_decodes`` sequences."""
        if num_prompt_tokens == 0:
            self._decode_ms = self._blend(self._decode_ms, step_ms)
        elif num_prompt_tokens >= MIN_CHUNK_TOKENS:
            decode_ms = (self._decode_ms or 0.0) if num_decodes else 0.0
            self._prompt_token_ms = self._blend(self._prompt_token_ms, max(0.1 * step_ms, step_ms - decode_ms) / num_prompt_tokens)

    def prompt_tokens_within(self, step_ms: float) -> int | None:
        """Prompt tokens that fit beside the decodes into ``step_ms``; ``None`` while nothing is known."""
        if self._prompt_token_ms is None:
            return None
        return max(MIN_CHUNK_TOKENS, int((step_ms - (self._decode_ms or 0.0)) / self._prompt_token_ms))

    def _blend(self, old: float | None, new: float) -> float:
        return new if old is None else old + self._forget * (new - old)
