"""Tokenizers out of Hugging Face directories: ``tokenizer.json`` (else ``tokenizer.model``) and what beside it names special tokens.

``tokenizer.json`` decides how text is cut; padding and truncation that were saved with it are turned off. How tokens become
text again is read from its decoder, so that it can be done token by token. What ends a generation is in
``generation_config.json``, ``config.json`` and ``tokenizer_config.json``, and any of them may be missing.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from octavo.text.charsmap import check_charsmap
from octavo.text.gguf_tokenizer import parts_from_metadata
from octavo.text.infill import find_fim_tokens
from octavo.text.parts import TokenizerParts, end_of_generation
from octavo.text.sentencepiece_model import add_tokens, metadata_from_model
from octavo.text.spelling import Replacement, Spelling, byte_level, metaspace, sentencepiece, spaced_words, wordpiece

_MAX_JSON_BYTES = 256 << 20
_MAX_PADDING = 65536


def is_hf_directory(path: str | os.PathLike[str]) -> bool:
    return Path(path).is_dir()


def parts_from_directory(directory: str | os.PathLike[str]) -> TokenizerParts:
    """Raises ``ValueError`` with the file's name and what is wrong."""
    root = Path(directory)
    path = root / "tokenizer.json"
    if path.is_file():
        return _parts_from_json(root, path)
    for name in ("tokenizer.model", "spiece.model"):
        if (root / name).is_file():
            return _parts_from_sentencepiece(root, root / name)
    raise ValueError(f"{root}: there is no tokenizer.json or tokenizer.model; transformers' save_pretrained writes one")


def _parts_from_json(root: Path, path: Path) -> TokenizerParts:
    library = _load(path)
    try:
        _check_charsmaps(_description(library.normalizer))
        return _parts(root, library)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parts_from_sentencepiece(root: Path, path: Path) -> TokenizerParts:
    """A SentencePiece model, with the tokens that ``tokenizer_config.json`` adds to it."""
    config = read_json(root / "tokenizer_config.json")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many; at most {_MAX_JSON_BYTES} are accepted")
        metadata = metadata_from_model(path.read_bytes())
        for name in ("add_bos_token", "add_eos_token"):
            if isinstance(config.get(name), bool):
                metadata[f"tokenizer.ggml.{name}"] = config[name]
        add_tokens(metadata, _added_tokens(root, config))
        parts = parts_from_metadata(metadata)
        vocabulary = {token: index for index, token in enumerate(parts.tokens)}
        names = _Names(root, config, vocabulary, len(parts.tokens))
        ends = parts.eos_token_ids | names.ends
        return replace(
            parts,
            eos_token_ids=ends,
            special_ids=parts.special_ids | ends,
            bos_token_id=names.token_id("bos", parts.bos_token_id),
            eos_token_id=names.token_id("eos", parts.eos_token_id),
            pad_token_id=names.token_id("pad", parts.pad_token_id),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _added_tokens(root: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Id -> (text, whether it is special), from ``added_tokens_decoder``, else from ``added_tokens.json``."""
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries = [(key, token_text(value), bool(isinstance(value, dict) and value.get("special"))) for key, value in decoder.items()]
    else:
        entries = [(index, token, True) for token, index in read_json(root / "added_tokens.json").items()]
    added = {}
    for key, text, special in entries:
        if text is None or not str(key).isdecimal():
            raise ValueError(f"added_tokens_decoder holds {key!r}: a token's id and its text are needed")
        added[int(key)] = (text, special)
    return added


def _load(path: Path) -> tokenizers.Tokenizer:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are too many; at most {_MAX_JSON_BYTES} are accepted")
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises bare exceptions, and panics are not even those
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{path}: not a tokenizer that the tokenizers library can read: {error}") from error
    library.no_padding()
    library.no_truncation()
    return library


def _description(component: Any) -> Any:
    """A part of the library's tokenizer as ``tokenizer.json`` would write it today; ``None`` if there is none.

    The whole would take time in proportion to the highest id, which a file may choose freely.
    """
    return None if component is None else json.loads(component.__getstate__())


def _check_charsmaps(normalizer: Any) -> None:
    steps = [normalizer] if isinstance(normalizer, dict) else []
    while steps:
        step = steps.pop()
        steps += step.get("normalizers", [])
        if step.get("type") == "Precompiled" and step.get("precompiled_charsmap"):
            try:
                check_charsmap(base64.b64decode(step["precompiled_charsmap"]))
            except ValueError as error:
                raise ValueError(f"precompiled_charsmap is invalid: {error}") from error


def _parts(root: Path, library: tokenizers.Tokenizer) -> TokenizerParts:
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise ValueError("the vocabulary is empty")
    added = library.get_added_tokens_decoder()
    config = read_json(root / "tokenizer_config.json")
    tokens = [""] * _num_tokens(vocabulary, read_json(root / "config.json"))
    for token, index in vocabulary.items():
        tokens[index] = token
    names = _Names(root, config, vocabulary, len(tokens))
    bos, eos = names.token_id("bos"), names.token_id("eos")
    special = {index for index, token in added.items() if token.special}
    ends = end_of_generation(vocabulary, vocabulary.values() - added.keys()) | names.ends
    prefix, suffix = _around(library, config, bos, eos)
    return TokenizerParts(
        library=library,
        tokens=tokens,
        spelling=spelling_of(_description(library.decoder), frozenset(token.content for token in added.values())),
        special_ids=frozenset(special | ends),
        eos_token_ids=frozenset(ends),
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=names.token_id("pad"),
        prefix_ids=prefix,
        suffix_ids=suffix,
        fim=find_fim_tokens(vocabulary),
    )


class _Names:
    """Special tokens by their role, as the files beside the tokenizer have it. ``ends``: all that end a generation."""

    def __init__(self, root: Path, config: Mapping[str, Any], vocabulary: Mapping[str, int], num_tokens: int) -> None:
        self._sources = [read_json(root / "generation_config.json"), read_json(root / "config.json")]
        self._texts = read_json(root / "special_tokens_map.json") | dict(config)
        self._vocabulary = vocabulary
        self._num_tokens = num_tokens
        self.ends = {index for source in self._sources for index in self._ids(source, "eos_token_id")}
        eos = self.token_id("eos")
        if eos is not None:
            self.ends.add(eos)

    def token_id(self, role: str, default: int | None = None) -> int | None:
        text = token_text(self._texts.get(f"{role}_token"))
        if text is not None and text in self._vocabulary:
            return self._vocabulary[text]
        found = [index for source in self._sources for index in self._ids(source, f"{role}_token_id")]
        return found[0] if found else default

    def _ids(self, source: Mapping[str, Any], name: str) -> list[int]:
        """``None``, an id, or a list of ids. An id beyond the vocabulary ends nothing and is left out."""
        value = source.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if isinstance(item, bool) or not isinstance(item, int):
                raise ValueError(f"{name}={value!r} is invalid: it must be an id or a list of ids")
        return [item for item in values if 0 <= item < self._num_tokens]


def _num_tokens(vocabulary: Mapping[str, int], model: Mapping[str, Any]) -> int:
    """At least the model's ``vocab_size``: it is often rounded up, and what the model may emit must have a text, if an empty one."""
    highest = max(vocabulary.values())
    if highest >= 4 * len(vocabulary) + _MAX_PADDING:
        raise ValueError(f"the vocabulary has {len(vocabulary)} tokens and yet an id of {highest}")
    text_model = model.get("text_config")
    size = model.get("vocab_size", text_model.get("vocab_size") if isinstance(text_model, dict) else None)
    if isinstance(size, int) and highest < size <= highest + _MAX_PADDING:
        return size
    return highest + 1


def _around(
    library: tokenizers.Tokenizer, config: Mapping[str, Any], bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text; without one, what ``tokenizer_config.json`` asks for."""
    if library.post_processor is None:
        prefix = (bos,) if config.get("add_bos_token") is True and bos is not None else ()
        suffix = (eos,) if config.get("add_eos_token") is True and eos is not None else ()
        return prefix, suffix
    plain = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise ValueError("the post_processor changes the tokens of a text, which is not supported")


def spelling_of(decoder: Any, added: frozenset[str]) -> Spelling:
    """The way of a tokenizer.json's ``decoder`` (``None`` if it has none).

    Raises ``ValueError`` for one that cannot work token by token.
    """
    if decoder is None:
        return spaced_words()
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return byte_level(added)
    if kinds == ["WordPiece"]:
        return wordpiece(steps[0]["prefix"], cleanup=steps[0]["cleanup"])
    if kinds == ["Metaspace"]:
        return metaspace(steps[0]["replacement"], drops_first=steps[0].get("prepend_scheme", "always") != "never")
    return _replacing(steps, kinds)


def _replacing(steps: list[dict[str, Any]], kinds: list[Any]) -> Spelling:
    """Llama's and its kin: replacements, lone bytes, everything joined, perhaps a leading space dropped."""
    replacements: list[Callable[[str], str]] = []
    byte_tokens, fused, strip_first, strip = False, False, 0, " "
    for step, kind in zip(steps, kinds, strict=True):
        if kind == "Replace" and not fused:
            pattern = step["pattern"]
            replacements.append(Replacement(pattern["String"] if "String" in pattern else re.compile(pattern["Regex"]), step["content"]))
        elif kind == "ByteFallback":
            byte_tokens = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Metaspace" and not fused and step.get("prepend_scheme", "always") == "never":
            replacements.append(Replacement(step["replacement"], " "))
        elif kind == "Strip" and fused and step["stop"] == 0:
            strip, strip_first = step["content"], step["start"]
        else:
            raise ValueError(f"decoder={kinds!r} is not supported: {kind} cannot work token by token here")
    return sentencepiece(strip_first=strip_first, replacements=replacements, byte_tokens=byte_tokens, strip=strip)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``, or an empty one if there is no such file. Raises ``ValueError`` with the file's name and what is wrong."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold an object, not {type(value).__name__}")
    return value


def token_text(value: Any) -> str | None:
    """A token as the configurations write it: its text, or an object with it as ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
