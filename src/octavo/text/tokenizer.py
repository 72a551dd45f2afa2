"""``Tokenizer``: text to token ids and back, built from the vocabulary and merges in a checkpoint's metadata.

The merging itself is the ``tokenizers`` library's; everything that needs bytes is done here on the vocabulary, because the
incremental detokenizer must see the bytes of each token and agree with ``decode`` to the character. Byte-level
vocabularies (GPT-2's) spell every byte as a printable character; control and user-defined tokens stand for their own text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from octavo.text.pretokenizers import pre_tokenizer

if TYPE_CHECKING:
    from octavo.weights.tensor import Checkpoint

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
_NUM_TOKEN_TYPES = 6

END_OF_GENERATION_NAMES = frozenset(
    (
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>", "<|call|>",
        "<end_of_turn>", "<end_of_utterance>", "<turn|>", "<eos>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>",
    )
)  # fmt: skip
"""Tokens that end a turn or a text whatever the metadata say: files name only one of them as the end of sequence."""


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: byte -> the printable character that spells it in a vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# Characters that spell a byte go to that byte, all others in their range to one that latin-1 cannot encode.
_TO_LATIN1 = dict.fromkeys(range(256), "\uffff") | {ord(c): chr(byte) for byte, c in _byte_characters().items()}


class Tokenizer:
    """A byte-level BPE tokenizer. Immutable and safe to use from several threads.

    ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` are the metadata's, ``None`` where absent. ``eos_token_ids`` are
    all tokens that end a generation; ``special_ids`` are the control tokens, which ``decode`` leaves out.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """From a GGUF file's key-value pairs. Raises ``ValueError`` naming the key that is missing, wrong or unsupported."""
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise ValueError(f"tokenizer.ggml.model={model!r} is not supported; supported is 'gpt2' (byte-level BPE)")
        self._tokens = _strings(metadata, "tokenizer.ggml.tokens")
        types = _token_types(metadata, len(self._tokens))
        self.bos_token_id = self._token_id(metadata, "bos")
        self.eos_token_id = self._token_id(metadata, "eos")
        self.pad_token_id = self._token_id(metadata, "padding")
        self._adds_bos = _flag(metadata, "tokenizer.ggml.add_bos_token") and self.bos_token_id is not None
        self._adds_eos = _flag(metadata, "tokenizer.ggml.add_eos_token") and self.eos_token_id is not None

        vocabulary = {token: index for index, token in enumerate(self._tokens)}
        ends = {self.eos_token_id, self._token_id(metadata, "eot"), self._token_id(metadata, "eom")} - {None}
        for name in END_OF_GENERATION_NAMES & vocabulary.keys():
            # "</s>" may be an ordinary piece of HTML in a vocabulary; nobody writes "<|im_end|>" by chance.
            if types[vocabulary[name]] != _NORMAL or name.startswith("<|"):
                ends.add(vocabulary[name])
        self.eos_token_ids: frozenset[int] = frozenset(index for index in ends if index is not None)
        self.special_ids: frozenset[int] = self.eos_token_ids | {i for i, kind in enumerate(types) if kind == _CONTROL}
        self._added = self.special_ids | {i for i, kind in enumerate(types) if kind == _USER_DEFINED}
        self._bytes: list[bytes | None] = [None] * len(self._tokens)
        self._library = self._build(metadata, vocabulary)

    def _build(self, metadata: Mapping[str, Any], vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
        merges: list[tuple[str, str]] = []
        for merge in _strings(metadata, "tokenizer.ggml.merges"):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise ValueError(f"tokenizer.ggml.merges holds {merge!r}; a merge is two tokens with a space between them")
            merges.append((left, right))
        name = metadata.get("tokenizer.ggml.pre", "default")
        splitter = pre_tokenizer(name, add_space_prefix=_flag(metadata, "tokenizer.ggml.add_space_prefix"))
        try:
            library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # the library raises bare exceptions: a merge of tokens that are not in the vocabulary
            raise ValueError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error
        library.pre_tokenizer = splitter
        library.decoder = decoders.ByteLevel()
        added = [(self._tokens[i], i in self.special_ids) for i in sorted(self._added) if self._tokens[i]]
        library.add_tokens([AddedToken(token, special=special, normalized=False) for token, special in added])
        return library

    def _token_id(self, metadata: Mapping[str, Any], name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self._tokens):
            raise ValueError(f"{key}={value!r} is invalid: it must be an id below {len(self._tokens)}")
        return value

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``, in which control tokens may be spelled out (``<|im_end|>``).

        ``add_special_tokens`` puts the beginning (and end) of sequence where the model wants it. Bytes that the vocabulary cannot
        spell are dropped, as other implementations do. Raises ``ValueError`` for text with lone surrogates,
        which no encoding can represent.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """``encode`` of each text. Runs without the GIL, on several threads when there are several texts."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"text={text!r:.100} is invalid: it must be a string, not {type(text).__name__}")
            _refuse_surrogates(text)
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        prefix = [self.bos_token_id] if add_special_tokens and self._adds_bos and self.bos_token_id is not None else []
        suffix = [self.eos_token_id] if add_special_tokens and self._adds_eos and self.eos_token_id is not None else []
        return [prefix + encoding.ids + suffix for encoding in encodings]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; each maximal invalid piece of UTF-8 becomes U+FFFD.

        Raises ``ValueError`` for an id outside the vocabulary.
        """
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        return b"".join([self.token_bytes(i) for i in ids if i not in skipped]).decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str:
        """The token as the vocabulary spells it (``Ġthe``). Raises ``ValueError`` for an id outside the vocabulary."""
        return self._tokens[self._checked(token_id)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to the text: often not whole characters. Raises ``ValueError`` for an id outside the vocabulary."""
        known = self._bytes[self._checked(token_id)]
        if known is None:
            token = self._tokens[token_id]
            known = self._bytes[token_id] = token.encode() if token_id in self._added else _spelled_bytes(token)
        return known

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < len(self._tokens):
            raise ValueError(f"token id {token_id} is invalid: the vocabulary has ids 0 to {len(self._tokens) - 1}")
        return token_id


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer in ``checkpoint``'s metadata. Raises ``ValueError`` with the file's name and what is wrong."""
    try:
        return Tokenizer(checkpoint.metadata)
    except ValueError as error:
        raise ValueError(f"{os.fspath(checkpoint.path)}: {error}") from error


def _spelled_bytes(token: str) -> bytes:
    """The bytes that a byte-level token spells; a token with any other character stands for its own text."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _refuse_surrogates(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is invalid: it has a lone surrogate, {text[error.start]!r}, at position {error.start}") from None


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is {'missing' if value is None else 'invalid'}: a non-empty list of strings is needed")
    return value


def _token_types(metadata: Mapping[str, Any], num_tokens: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [_NORMAL] * num_tokens
    known = range(1, _NUM_TOKEN_TYPES + 1)
    if not isinstance(types, list) or len(types) != num_tokens or not all(isinstance(kind, int) and kind in known for kind in types):
        raise ValueError(
            f"tokenizer.ggml.token_type is invalid: it must hold a type from 1 to {_NUM_TOKEN_TYPES} for each of {num_tokens} tokens"
        )
    return types


def _flag(metadata: Mapping[str, Any], key: str) -> bool:
    value = metadata.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r} is invalid: it must be true or false")
    return value
