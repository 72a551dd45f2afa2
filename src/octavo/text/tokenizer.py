"""``Tokenizer``: text to token ids and back, built from what a checkpoint carries.

The splitting and merging is the ``tokenizers`` library's; everything that needs bytes is done here on the vocabulary, because the
incremental detokenizer must see the bytes of each token and agree with ``decode`` to the character. How a family builds
its ``TokenizerParts`` is the business of ``gguf_tokenizer`` (metadata of GGUF files) and ``hf_tokenizer`` (Hugging Face directories).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo.config import quoted
from octavo.text.gguf_tokenizer import parts_from_metadata
from octavo.text.hf_tokenizer import is_hf_directory, parts_from_directory
from octavo.text.parts import TokenizerParts

if TYPE_CHECKING:
    from octavo.weights.tensor import Checkpoint


class Tokenizer:
    """Immutable and safe to use from several threads.

    ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` are the checkpoint's, ``None`` where absent. ``eos_token_ids`` are
    all tokens that end a generation; ``special_ids`` are the control tokens, which ``decode`` leaves out.
    ``fim`` are the tokens for filling in the middle, ``None`` where the model was not made for it.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """From a GGUF file's key-value pairs. Raises ``ValueError`` naming the key that is missing, wrong or unsupported."""
        self._adopt(parts_from_metadata(metadata))

    @classmethod
    def from_parts(cls, parts: TokenizerParts) -> Tokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._adopt(parts)
        return tokenizer

    def _adopt(self, parts: TokenizerParts) -> None:
        self._library = parts.library
        self._tokens = parts.tokens
        self._spelling = parts.spelling
        self._prefix = list(parts.prefix_ids)
        self._suffix = list(parts.suffix_ids)
        self.bos_token_id = parts.bos_token_id
        self.eos_token_id = parts.eos_token_id
        self.pad_token_id = parts.pad_token_id
        self.eos_token_ids: frozenset[int] = parts.eos_token_ids
        self.special_ids: frozenset[int] = parts.special_ids
        self.fim = parts.fim
        self._bytes: list[bytes | None] = [None] * len(self._tokens)

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def model_type(self) -> str:
        """``BPE``, ``Unigram`` or ``WordPiece``."""
        return type(self._library.model).__name__

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What ``encode`` puts in front of a text: the beginning-of-sequence token, or nothing."""
        return tuple(self._prefix)

    @property
    def keeps_every_byte(self) -> bool:
        """Whether tokens stand for all of a text, so that it has at least as many as its bytes fill of the longest ones.

        Normalizers merge spaces, and whole unknown words can become one token: then there is no such bound.
        """
        return self.model_type == "BPE" and self._library.normalizer is None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``, in which control tokens may be spelled out (``<|im_end|>``).

        ``add_special_tokens`` puts the beginning (and end) of sequence where the model wants it. Bytes that the vocabulary cannot
        spell are dropped or become its unknown token, as other implementations do. Raises ``ValueError`` for text with lone
        surrogates, which no encoding can represent, and for text that a tokenizer without an unknown token cannot spell.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """``encode`` of each text. Runs without the GIL, on several threads when there are several texts."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"text={quoted(text)} is invalid: it must be a string, not {type(text).__name__}")
            _refuse_surrogates(text)
        try:
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:  # the library raises bare exceptions, and panics are not even those
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError(f"text cannot be encoded: {error}") from error
        if not add_special_tokens:
            return [encoding.ids for encoding in encodings]
        return [self._prefix + encoding.ids + self._suffix for encoding in encodings]

    def infill(self, before: Sequence[int], after: Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        """The prompt that asks for what belongs between two texts, given as token ids without special tokens.

        Raises ``ValueError`` if the model has no tokens for it.
        """
        if self.fim is None:
            raise ValueError("the model's tokenizer has no tokens for filling in the middle")
        return (self._prefix if add_special_tokens else []) + self.fim.arrange(before, after)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; each maximal invalid piece of UTF-8 becomes U+FFFD.

        Raises ``ValueError`` for an id outside the vocabulary.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        kept = [i for i in ids if i not in skipped]
        if not kept:
            return ""
        pieces = [self.token_bytes(i) for i in kept]
        pieces[0] = self.first_token_bytes(kept[0])
        return b"".join(pieces).decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str:
        """The token as the vocabulary spells it (``Ġthe``). Raises ``ValueError`` for an id outside the vocabulary."""
        return self._tokens[self._checked(token_id)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to the text: often not whole characters. Raises ``ValueError`` for an id outside the vocabulary."""
        known = self._bytes[self._checked(token_id)]
        if known is None:
            token = self._tokens[token_id]
            known = self._bytes[token_id] = self._spelling.inside(token) if token else b""
        return known

    def first_token_bytes(self, token_id: int) -> bytes:
        """The bytes of the token when it is the first of a text: in some families without its leading space."""
        token = self._tokens[self._checked(token_id)]
        return self._spelling.first(token) if token else b""

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < len(self._tokens):
            raise ValueError(f"token id {token_id} is invalid: the vocabulary has ids 0 to {len(self._tokens) - 1}")
        return token_id


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """``checkpoint``'s tokenizer: from a directory with a ``tokenizer.json``, else from GGUF metadata.

    Raises ``ValueError`` with the file's name and what is wrong.
    """
    if is_hf_directory(checkpoint.path):
        return load_hf_tokenizer(checkpoint.path)
    try:
        return Tokenizer(checkpoint.metadata)
    except ValueError as error:
        raise ValueError(f"{os.fspath(checkpoint.path)}: {error}") from error


def load_hf_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: ``tokenizer.json``, with the special tokens that the other files name.

    Raises ``ValueError`` with the file's name and what is wrong.
    """
    return Tokenizer.from_parts(parts_from_directory(directory))


def _refuse_surrogates(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is invalid: it has a lone surrogate, {text[error.start]!r}, at position {error.start}") from None
