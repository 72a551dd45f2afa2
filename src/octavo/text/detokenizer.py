"""``IncrementalDetokenizer``: text from tokens as they come, never half a character.

A token's bytes may end inside a UTF-8 sequence. The bytes go through Python's incremental decoder, which holds back exactly
the incomplete sequence at the end (three bytes at most), so a token costs time in proportion to its own length, and what
was emitted plus ``flush`` is what decoding everything at once gives, invalid bytes included.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from copy import copy

from octavo.text.tokenizer import Tokenizer

_new_decoder = codecs.getincrementaldecoder("utf-8")
_LONGEST_CHARACTER_BYTES = 4


class IncrementalDetokenizer:
    """The text of one branch. Not thread-safe; one instance per branch.

    ``after`` are the tokens that come before, usually the prompt's: their text is not given, but what follows is then the
    continuation of a text, not a text of its own. SentencePiece's and WordPiece's tokenizers drop the space in front of a text, and
    without ``after`` the first word of every completion would lose it.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._first_token_bytes = tokenizer.first_token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = _new_decoder("replace")
        self._at_start = True
        if after:
            self._continue(after)

    def _continue(self, after: Sequence[int]) -> None:
        """As if ``after`` had been pushed, from no more of its tokens than can reach into the next character."""
        last: list[int] = []
        num_bytes = 0
        for token_id in reversed(after):
            if token_id not in self._skipped:
                last.append(token_id)
                num_bytes += len(self._token_bytes(token_id))
                if num_bytes > _LONGEST_CHARACTER_BYTES:
                    break
        for token_id in reversed(last):
            self.push(token_id)

    def fork(self) -> IncrementalDetokenizer:
        """Another one at the same place of the same text."""
        child = copy(self)
        child._decoder = _new_decoder("replace")
        child._decoder.setstate(self._decoder.getstate())
        return child

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` made certain, perhaps none. Raises ``ValueError`` for an id outside the vocabulary."""
        if token_id in self._skipped:
            return ""
        if self._at_start:
            data = self._first_token_bytes(token_id)
            self._at_start = False
        else:
            data = self._token_bytes(token_id)
        return self._decoder.decode(data)

    def push_all(self, token_ids: Sequence[int]) -> str:
        """The text that pushing each of ``token_ids`` would give."""
        skipped = self._skipped
        pieces = [self._token_bytes(token_id) for token_id in token_ids if token_id not in skipped]
        if not pieces:
            return ""
        if self._at_start:
            pieces[0] = self._first_token_bytes(next(i for i in token_ids if i not in skipped))
            self._at_start = False
        return self._decoder.decode(b"".join(pieces))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing. Ready for another text afterwards."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        self._at_start = True
        return text
