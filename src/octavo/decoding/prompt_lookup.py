"""Prompt lookup: a draft of the next tokens, copied from the last place where the present ending occurred before.

Text that repeats its prompt (summaries, edits, code, quotations) is foretold well by it, and it needs no draft model. The draft
only says which tokens are computed early: each is kept if the model chooses that very token at its position, so the tokens
are the same with and without it. Source: A. Saxena, Prompt Lookup Decoding, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.config import MAX_DRAFT_TOKENS


class PromptLookup:
    """The n-grams of one sequence of tokens, and drafts from them. Amortised O(``max_ngram``) per token.

    ``min_ngram`` … ``max_ngram``: how many tokens must have occurred before; the longest ending that has wins. ``max_draft``: tokens of
    a draft at most. A draft that fails whole halves the next one's length, one that holds whole doubles it again.
    """

    __slots__ = ("_draft_len", "_ends", "_max_draft", "_max_ngram", "_min_ngram", "_num_indexed")

    def __init__(self, max_draft: int, min_ngram: int = 2, max_ngram: int = 4) -> None:
        if not 1 <= max_draft <= MAX_DRAFT_TOKENS:
            raise ValueError(f"max_draft={max_draft} is invalid: must be between 1 and {MAX_DRAFT_TOKENS}")
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram={min_ngram} is invalid: must be between 1 and max_ngram={max_ngram}")
        self._max_draft = max_draft
        self._min_ngram = min_ngram
        self._max_ngram = max_ngram
        self._draft_len = max_draft
        self._ends: dict[tuple[int, ...], int] = {}
        """N-gram → the position after its last occurrence that something follows."""
        self._num_indexed = 0

    def fork(self) -> PromptLookup:
        """For a branch that goes its own way from here."""
        child = PromptLookup(self._max_draft, self._min_ngram, self._max_ngram)
        child._draft_len = self._draft_len
        child._ends = self._ends.copy()
        child._num_indexed = self._num_indexed
        return child

    def draft(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most ``limit`` tokens that may follow ``token_ids``, which has only grown since the last call; empty if nothing is known."""
        self._index(token_ids)
        length = min(limit, self._draft_len)
        if length < 1:
            return []
        for n in range(min(self._max_ngram, len(token_ids)), self._min_ngram - 1, -1):
            end = self._ends.get(tuple(token_ids[-n:]))
            if end is not None:
                return list(token_ids[end : end + length])
        return []

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """How the last draft fared."""
        if num_drafted and num_accepted == 0:
            self._draft_len = max(1, self._draft_len // 2)
        elif num_drafted and num_accepted == num_drafted:
            self._draft_len = min(self._max_draft, self._draft_len * 2)

    def _index(self, token_ids: Sequence[int]) -> None:
        """Enters the n-grams that end before the last token: the ending itself must not find itself."""
        for end in range(self._num_indexed + 1, len(token_ids)):
            for n in range(self._min_ngram, min(self._max_ngram, end) + 1):
                self._ends[tuple(token_ids[end - n : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)
