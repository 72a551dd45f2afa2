"""``IncrementalDetokenizer``: text from tokens as they come, never half a character.

A token's bytes may end inside a UTF-8 sequence. The bytes go through Python's incremental decoder, which holds back exactly
the incomplete sequence at the end (three bytes at most), so a token costs time in proportion to its own length, and what
was emitted plus ``flush`` is what decoding everything at once gives, invalid bytes included.
"""

from __future__ import annotations

import codecs

from octavo.text.tokenizer import Tokenizer

_new_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """The text of one branch. Not thread-safe; one instance per branch."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = _new_decoder("replace")

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` made certain, perhaps none. Raises ``ValueError`` for an id outside the vocabulary."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing. Ready for another text afterwards."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text
