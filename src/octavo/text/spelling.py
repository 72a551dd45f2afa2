"""``Spelling``: from a token as the vocabulary writes it to the bytes that it adds to a text.

Every family writes spaces and bytes in its own way: byte-level BPE spells each byte as a printable character, SentencePiece
writes U+2581 for a space and ``<0xXX>`` for a lone byte, WordPiece marks what continues a word with ``##``. A token may add
different bytes at the start of a text (SentencePiece drops the space it put there itself), hence two functions; with them a text
is a concatenation, which is what lets it be streamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SPACE = "\u2581"
"""How SentencePiece writes a space."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """``inside(token)``: its bytes after another token. ``first(token)``: its bytes when it is the first of a text."""

    inside: Callable[[str], bytes]
    first: Callable[[str], bytes]


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: byte -> the printable character that spells it in a vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# Characters that spell a byte go to that byte, all others in their range to one that latin-1 cannot encode.
_TO_LATIN1 = dict.fromkeys(range(256), "\uffff") | {ord(c): chr(byte) for byte, c in _byte_characters().items()}


def byte_level(plain: frozenset[str] = frozenset()) -> Spelling:
    """GPT-2's. Tokens in ``plain`` (those added to the vocabulary) stand for their own text, as does one with any other character."""

    def spelled(token: str) -> bytes:
        if token in plain:
            return token.encode()
        try:
            return token.translate(_TO_LATIN1).encode("latin-1")
        except UnicodeEncodeError:
            return token.encode()

    return Spelling(spelled, spelled)


_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Replacement:
    """Each ``pattern`` in a token becomes ``text``: a literal string, or a compiled regular expression."""

    pattern: str | re.Pattern[str]
    text: str

    def __call__(self, token: str) -> str:
        if isinstance(self.pattern, str):
            return token.replace(self.pattern, self.text)
        return self.pattern.sub(lambda _: self.text, token)


def sentencepiece(
    *,
    strip_first: int,
    replacements: Iterable[Callable[[str], str]] = (Replacement(SPACE, " "),),
    byte_tokens: bool = True,
    strip: str = " ",
) -> Spelling:
    """SentencePiece's, with up to ``strip_first`` of the character ``strip`` dropped from the start of a text."""
    steps = tuple(replacements)
    leading = strip.encode()

    def inside(token: str) -> bytes:
        if byte_tokens and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for step in steps:
            token = step(token)
        return token.encode()

    def first(token: str) -> bytes:
        data = inside(token)
        for _ in range(strip_first):
            if not data.startswith(leading):
                break
            data = data[len(leading) :]
        return data

    return Spelling(inside, first)


def metaspace(replacement: str, *, drops_first: bool) -> Spelling:
    """The ``tokenizers`` library's ``Metaspace``: ``replacement`` is a space, and nothing in the first token if ``drops_first``."""

    def inside(token: str) -> bytes:
        return token.replace(replacement, " ").encode()

    def first(token: str) -> bytes:
        return token.replace(replacement, "").encode()

    return Spelling(inside, first if drops_first else inside)


_CLEANUPS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def wordpiece(prefix: str = "##", *, cleanup: bool) -> Spelling:
    """WordPiece's: a space before every token but the first, unless it begins with ``prefix``.

    ``cleanup`` draws punctuation to the word before it, token by token, as the ``tokenizers`` library does.
    """

    def cleaned(text: str) -> bytes:
        if cleanup:
            for spaced, close in _CLEANUPS:
                text = text.replace(spaced, close)
        return text.encode()

    def inside(token: str) -> bytes:
        return cleaned(token[len(prefix) :] if token.startswith(prefix) else " " + token)

    return Spelling(inside, cleaned)


def spaced_words() -> Spelling:
    """Tokens with spaces between them: what the ``tokenizers`` library does when a tokenizer names no decoder."""
    return Spelling(lambda token: b" " + token.encode(), str.encode)
