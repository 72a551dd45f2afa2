"""Tokenizers out of the metadata of GGUF files (``tokenizer.ggml.*``): the four families that llama.cpp's files come in.

``gpt2`` is byte-level BPE, ``llama`` SentencePiece BPE, ``t5`` SentencePiece unigram, ``bert`` WordPiece; ``gemma4`` is BPE over
plain characters. Where a file is silent, llama.cpp's defaults hold (``src/llama-vocab.cpp``), as those who made the file relied on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders

from octavo.text import families
from octavo.text.infill import find_fim_tokens
from octavo.text.parts import TokenizerParts, end_of_generation
from octavo.text.pretokenizers import pre_tokenization
from octavo.text.spelling import SPACE, Spelling, byte_level, sentencepiece, wordpiece

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a family takes for granted when the file does not say."""

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    separator: int | None = None
    padding: int | None = None
    adds_bos: bool = False
    adds_eos: bool = False
    adds_separator: bool = False


class _Vocabulary:
    """``tokenizer.ggml.tokens`` and what else describes single tokens. Every problem is a ``ValueError`` that names the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens = _strings(metadata, "tokenizer.ggml.tokens")
        self.types = self._types()
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def _types(self) -> list[int]:
        types = self.metadata.get("tokenizer.ggml.token_type")
        if types is None:
            return [_NORMAL] * len(self.tokens)
        if not isinstance(types, list) or len(types) != len(self.tokens) or not all(isinstance(t, int) and 1 <= t <= _BYTE for t in types):
            raise ValueError(
                f"tokenizer.ggml.token_type is invalid: it must hold a type from 1 to {_BYTE} for each of {len(self.tokens)} tokens"
            )
        return types

    def scores(self) -> list[float]:
        key = "tokenizer.ggml.scores"
        scores = self.metadata.get(key)
        if not isinstance(scores, list) or len(scores) != len(self.tokens) or not all(isinstance(score, int | float) for score in scores):
            what = "missing" if scores is None else "invalid"
            raise ValueError(f"{key} is {what}: a number is needed for each of {len(self.tokens)} tokens")
        return [float(score) for score in scores]

    def of_type(self, *types: int) -> set[int]:
        return {index for index, kind in enumerate(self.types) if kind in types}

    def token_id(self, *names: str, default: int | None = None) -> int | None:
        """The id under the first key that the file has. A default outside the vocabulary counts for nothing."""
        for name in names:
            key = f"tokenizer.ggml.{name}_token_id"
            value = self.metadata.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
                raise ValueError(f"{key}={value!r} is invalid: it must be an id below {len(self.tokens)}")
            return value
        return default if default is not None and default < len(self.tokens) else None

    def flag(self, name: str, default: bool) -> bool:
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key}={value!r} is invalid: it must be true or false")
        return value

    def merges(self) -> list[tuple[str, str]]:
        merges = []
        for merge in _strings(self.metadata, "tokenizer.ggml.merges"):
            space = merge.find(" ", 1)
            if space < 0 or space == len(merge) - 1:
                raise ValueError(f"tokenizer.ggml.merges holds {merge!r}; a merge is two tokens with a space between them")
            merges.append((merge[:space], merge[space + 1 :]))
        return merges


def parts_from_metadata(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Raises ``ValueError`` naming the key that is missing, wrong or unsupported."""
    model = metadata.get("tokenizer.ggml.model")
    build = _FAMILIES.get(model) if isinstance(model, str) else None
    if build is None:
        raise ValueError(f"tokenizer.ggml.model={model!r} is not supported; supported are {', '.join(map(repr, _FAMILIES))}")
    return build(_Vocabulary(metadata))


def _finish(
    vocabulary: _Vocabulary, library: tokenizers.Tokenizer, spelling: Callable[[frozenset[str]], Spelling], defaults: _Defaults
) -> TokenizerParts:
    bos = vocabulary.token_id("bos", "cls", default=defaults.bos)
    eos = vocabulary.token_id("eos", default=defaults.eos)
    separator = vocabulary.token_id("seperator", "separator", default=defaults.separator)  # the first is how files spell it
    ends = end_of_generation(vocabulary.ids, vocabulary.of_type(_NORMAL))
    ends |= {index for index in (eos, vocabulary.token_id("eot"), vocabulary.token_id("eom")) if index is not None}
    special = ends | vocabulary.of_type(_CONTROL, _UNKNOWN)
    added = sorted(special | vocabulary.of_type(_USER_DEFINED))
    strips = _Strips(vocabulary)
    texts = [(vocabulary.tokens[index], index in special) for index in added if vocabulary.tokens[index]]
    library.add_tokens(
        [
            AddedToken(text, special=is_special, normalized=False, lstrip=strips.left(text), rstrip=strips.right(text, is_special))
            for text, is_special in texts
        ]
    )
    prefix = [bos] if vocabulary.flag("add_bos_token", defaults.adds_bos) else []
    suffix = [eos] if vocabulary.flag("add_eos_token", defaults.adds_eos) else []
    if defaults.adds_separator and not suffix:
        suffix = [separator] if vocabulary.flag("add_sep_token", True) else []
    return TokenizerParts(
        library=library,
        tokens=vocabulary.tokens,
        spelling=spelling(frozenset(vocabulary.tokens[index] for index in added)),
        special_ids=frozenset(special),
        eos_token_ids=frozenset(ends),
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=vocabulary.token_id("padding", default=defaults.padding),
        prefix_ids=tuple(index for index in prefix if index is not None),
        suffix_ids=tuple(index for index in suffix if index is not None),
        fim=find_fim_tokens(vocabulary.ids, lambda role: vocabulary.token_id(f"fim_{role[:3]}", role)),
    )


class _Strips:
    """Which added tokens swallow the spaces beside them. Files do not say; it goes by the model's name, as in llama.cpp."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        name = str(vocabulary.metadata.get("general.name", "")).lower()
        pre = vocabulary.metadata.get("tokenizer.ggml.pre")
        self._phi3 = "phi-3" in name or "phi3" in name
        self._left = frozenset[str]()
        if pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code"):
            self._left = frozenset(("<mask>",))
        elif pre == "modern-bert" or vocabulary.metadata.get("tokenizer.ggml.model") == "bert":
            self._left = frozenset(("[MASK]",))

    def left(self, token: str) -> bool:
        return token in self._left

    def right(self, token: str, special: bool) -> bool:
        return self._phi3 and special and token not in ("<unk>", "<s>", "<|endoftext|>")


def _byte_level_bpe(vocabulary: _Vocabulary) -> TokenizerParts:
    kind = pre_tokenization(vocabulary.metadata.get("tokenizer.ggml.pre", "default"))
    if not kind.byte_level:
        return _character_bpe(vocabulary)
    library = families.bpe(vocabulary.ids, vocabulary.merges(), ignore_merges=kind.ignore_merges, nfc=kind.nfc)
    library.pre_tokenizer = kind.pre_tokenizer()
    library.decoder = decoders.ByteLevel()
    return _finish(vocabulary, library, byte_level, _Defaults(adds_bos=kind.adds_bos))


def _character_bpe(vocabulary: _Vocabulary) -> TokenizerParts:
    """BPE by rank over characters, with U+2581 for spaces and byte tokens for what the vocabulary lacks (Gemma 4)."""
    kind = pre_tokenization(vocabulary.metadata.get("tokenizer.ggml.pre", "gemma4"))
    unknown = vocabulary.token_id("unknown")
    library = families.bpe(
        vocabulary.ids, vocabulary.merges(), unknown=None if unknown is None else vocabulary.tokens[unknown], byte_fallback=True
    )
    library.normalizer = families.space_normalizer(add_prefix=False)
    library.pre_tokenizer = kind.pre_tokenizer()
    library.decoder = families.space_decoder(strip_first=0)
    return _finish(vocabulary, library, lambda _: sentencepiece(strip_first=0), _Defaults(adds_bos=kind.adds_bos))


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> TokenizerParts:
    unknown = vocabulary.token_id("unknown", default=0)
    add_prefix = vocabulary.flag("add_space_prefix", True)
    mergeable = {token: index for token, index in vocabulary.ids.items() if vocabulary.types[index] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    merges = families.merges_by_score(mergeable, vocabulary.scores())
    library = families.bpe(
        vocabulary.ids,
        merges,
        unknown=None if unknown is None else vocabulary.tokens[unknown],
        byte_fallback=bool(vocabulary.of_type(_BYTE)),
    )
    return _finish_spaced(vocabulary, library, add_prefix, _Defaults(bos=1, eos=2, unknown=0, adds_bos=True))


def _sentencepiece_unigram(vocabulary: _Vocabulary) -> TokenizerParts:
    unknown = vocabulary.token_id("unknown", default=2)
    if unknown is None:
        raise ValueError("tokenizer.ggml.unknown_token_id is missing: a unigram model needs it")
    add_prefix = vocabulary.flag("add_space_prefix", True)
    library = families.unigram(vocabulary.tokens, vocabulary.scores(), unknown, byte_fallback=bool(vocabulary.of_type(_BYTE)))
    return _finish_spaced(vocabulary, library, add_prefix, _Defaults(eos=1, unknown=2, padding=0, adds_eos=True))


def _finish_spaced(vocabulary: _Vocabulary, library: tokenizers.Tokenizer, add_prefix: bool, defaults: _Defaults) -> TokenizerParts:
    """SentencePiece spells a space as a character of its own, and may put one in front of the text."""
    library.normalizer = families.space_normalizer(
        add_prefix=add_prefix, charsmap=_charsmap(vocabulary.metadata), merge_spaces=vocabulary.flag("remove_extra_whitespaces", False)
    )
    library.decoder = families.space_decoder(strip_first=int(add_prefix))
    spelling = sentencepiece(strip_first=int(add_prefix))
    return _finish(vocabulary, library, lambda _: spelling, defaults)


def _wordpiece(vocabulary: _Vocabulary) -> TokenizerParts:
    """Files write ``▁word`` and ``piece`` where the original has ``word`` and ``##piece``."""
    unknown = vocabulary.token_id("unknown", default=100)
    if unknown is None:
        raise ValueError("tokenizer.ggml.unknown_token_id is missing: a WordPiece model needs it")
    phantom = any(token.startswith(SPACE) for token in vocabulary.tokens)
    names = {
        token: token if kind != _NORMAL or not phantom else token[1:] if token.startswith(SPACE) else "##" + token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    }
    original = {names[token]: index for token, index in vocabulary.ids.items()}
    lowercase = vocabulary.flag("normalizer.lowercase", True)
    library = families.wordpiece(
        original, vocabulary.tokens[unknown], lowercase=lowercase, strip_accents=vocabulary.flag("normalizer.strip_accents", lowercase)
    )
    pieces = wordpiece(cleanup=True)
    spelling = Spelling(lambda token: pieces.inside(names[token]), lambda token: pieces.first(names[token]))
    defaults = _Defaults(bos=101, unknown=100, separator=102, padding=0, adds_bos=True, adds_separator=True)
    return _finish(vocabulary, library, lambda _: spelling, defaults)


_FAMILIES: Mapping[str, Callable[[_Vocabulary], TokenizerParts]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
    "bert": _wordpiece,
    "gemma4": _character_bpe,
}


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    key = "tokenizer.ggml.precompiled_charsmap"
    values = metadata.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, int) and -128 <= value < 256 for value in values):
        raise ValueError(f"{key} is invalid: a list of bytes is needed")
    return bytes(value & 0xFF for value in values)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is {'missing' if value is None else 'invalid'}: a non-empty list of strings is needed")
    return value
