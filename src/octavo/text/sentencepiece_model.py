"""SentencePiece's ``tokenizer.model`` files, read into the metadata that a GGUF file made of them would have.

The file is a protocol buffer (``ModelProto`` in sentencepiece_model.proto); the few fields that matter are read here, so that no
other package is needed. Types of pieces have the same numbers in both formats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.text.spelling import SPACE

_MAX_PADDING = 65536
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_MODEL_TYPES = {1: "t5", 2: "llama"}  # TrainerSpec.ModelType: unigram, BPE; by the names of GGUF's families

Value = int | bytes
"""A field of a protocol buffer: a number, or the bytes of a string, a message or a float."""


def metadata_from_model(data: bytes) -> dict[str, Any]:
    """Keys ``tokenizer.ggml.*``. Raises ``ValueError`` for what is not such a file, or a kind of model that GGUF has no name for."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_message(value)))
            kind = _number(piece.get(3, 1))
            text = _message(piece.get(1, b"")).decode()
            tokens.append(text.replace(SPACE, " ") if kind == _USER_DEFINED else text)
            scores.append(struct.unpack("<f", _message(piece.get(2, bytes(4))))[0])
            types.append(kind)
        elif number == 2:
            trainer = dict(_fields(_message(value)))
        elif number == 3:
            normalizer = dict(_fields(_message(value)))
    model_type = _number(trainer.get(3, 1))
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"model_type={model_type} is not supported; supported are unigram (1) and BPE (2)")
    if _number(trainer.get(24, 0)):
        raise ValueError("treat_whitespace_as_suffix is not supported")
    family = _MODEL_TYPES[model_type]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": family,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": bool(_number(normalizer.get(3, 1))),
        "tokenizer.ggml.remove_extra_whitespaces": bool(_number(normalizer.get(4, 1))),
        "tokenizer.ggml.precompiled_charsmap": list(_message(normalizer.get(2, b""))),
        "tokenizer.ggml.add_bos_token": family == "llama",
        "tokenizer.ggml.add_eos_token": family == "t5",
    }
    for role, field, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("padding", 43, -1)):
        index = _number(trainer.get(field, default & (2**64 - 1)))
        if 0 <= index < len(tokens):  # -1, as a large unsigned number, means that there is none
            metadata[f"tokenizer.ggml.{role}_token_id"] = index
    return metadata


def add_tokens(metadata: dict[str, Any], added: Mapping[int, tuple[str, bool]]) -> None:
    """Puts ``added`` (id -> text, whether it is special) into ``metadata``, beyond the model's own tokens or in their place."""
    tokens, scores, types = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for index, (text, special) in sorted(added.items()):
        if index >= len(tokens) + _MAX_PADDING:
            raise ValueError(f"the token {text!r} has the id {index}, and the model has {len(tokens)} tokens")
        while len(tokens) <= index:
            tokens.append("")
            scores.append(0.0)
            types.append(_UNUSED)
        tokens[index] = text
        types[index] = _CONTROL if special else _USER_DEFINED


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in order: number and value."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"not a SentencePiece model: wire type {wire} at byte {position}")
        if length > len(data) - position:
            raise ValueError(f"not a SentencePiece model: a field of {length} bytes goes past the end")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"not a SentencePiece model: a number without an end at byte {position}")


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"not a SentencePiece model: {value} where bytes should be")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("not a SentencePiece model: bytes where a number should be")
    return value
