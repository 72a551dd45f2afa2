"""A reader of one safetensors file over a memory map.

Layout (huggingface/safetensors, README): eight bytes with the header's length N, N bytes of JSON, the data. The JSON maps each
tensor's name to ``{"dtype": …, "shape": [...], "data_offsets": [begin, end]}``, offsets counted from the end of the header, and
``__metadata__`` to strings. It has this one shape, so it is read by this shape, entry by entry, and not as any JSON: nothing can be
nested deeply or made to take much more memory than its own bytes. Every claim is checked against the file; whatever is wrong
ends in a ``ValueError`` that names the file and the tensor.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from functools import cached_property
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from octavo.weights.fingerprint import file_fingerprint
from octavo.weights.table import TensorTable
from octavo.weights.tensor import Tensor, TensorType

MAX_HEADER_BYTES = 1 << 25
"""An entry takes about a hundred bytes; the largest models have some ten thousand tensors in a file."""
MAX_DIMENSIONS = 8
_MAX_ENTRY_CHARACTERS = 1024

_TYPES: Mapping[str, TensorType] = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
_ELEMENT_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip
"""Every dtype of the format, read here or not: their sizes are checked alike."""

_SPACE = re.compile(r"[ \t\n\r]*")


class SafetensorsFile:
    """One open file. Tensor views keep the map alive; the file must not be changed meanwhile.

    Raises ``OSError`` when it cannot be opened, ``ValueError`` when it is not sound. A tensor that is not F32, F16 or BF16, or has
    no elements, is refused when it is looked up.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self._status = os.fstat(file.fileno())
            if self._status.st_size < 10:
                self._fail(f"not a safetensors file: it has {self._status.st_size} bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = len(self._map)
        header_bytes = int.from_bytes(self._map[:8], "little")
        if header_bytes > size - 8:
            self._fail(f"not a safetensors file, or truncated: it claims a header of {header_bytes} bytes and has {size}")
        if header_bytes > MAX_HEADER_BYTES:
            self._fail(f"claims a header of {header_bytes} bytes; at most {MAX_HEADER_BYTES} are accepted")
        try:
            text = self._map[8 : 8 + header_bytes].decode()
        except UnicodeDecodeError as error:
            self._fail(f"the header is not UTF-8: {error}")
        self._metadata: dict[str, str] = {}
        self._tensors = self._table(self._read_header(text), 8 + header_bytes)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The strings of ``__metadata__``."""
        return MappingProxyType(self._metadata)

    @property
    def tensors(self) -> TensorTable:
        """By name, in the header's order."""
        return self._tensors

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits: the beginning of the whole file's SHA-256."""
        return file_fingerprint(self.path, memoryview(self._map), self._status)

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what}")

    def _read_header(self, text: str) -> dict[str, Any]:
        """The entries' JSON objects by tensor name."""
        entries: dict[str, Any] = {}
        scanner = _Scanner(text, self._fail)
        for name in scanner.members("the header"):
            if name in entries or (name == "__metadata__" and self._metadata):
                self._fail(f"the tensor {name!r} occurs twice in the header")
            if name == "__metadata__":
                for key in scanner.members("__metadata__"):
                    self._metadata[key] = scanner.string(f"__metadata__ {key!r}")
            else:
                entries[name] = scanner.flat_object(f"the tensor {name!r}")
        scanner.end()
        return entries

    def _table(self, entries: Mapping[str, Any], data_start: int) -> TensorTable:
        num_data_bytes = len(self._map) - data_start
        bytes_of_file = np.frombuffer(self._map, np.uint8)
        spans: list[tuple[int, int, str]] = []
        table: dict[str, Tensor | str] = {}
        for name, entry in entries.items():
            what = f"the tensor {name!r}"
            dtype, shape, begin, end = self._claims(what, entry)
            if not begin <= end <= num_data_bytes:
                self._fail(f"{what} lies at bytes {begin} to {end} of the data, of which there are {num_data_bytes}")
            bits = math.prod(shape) * _ELEMENT_BITS[dtype]
            if bits != (end - begin) * 8:
                self._fail(
                    f"{what} of type {dtype} and shape {list(shape)} takes {-(-bits // 8)} bytes, and its data_offsets give {end - begin}"
                )
            spans.append((begin, end, name))
            kind = _TYPES.get(dtype)
            if kind is None:
                table[name] = f"{self.path}: {what} has the dtype {dtype}, which is not supported; supported are {', '.join(_TYPES)}"
            elif not bits:
                table[name] = f"{self.path}: {what} has the shape {list(shape)}: it has no elements"
            else:
                data = bytes_of_file[data_start + begin : data_start + end]
                table[name] = Tensor(name, kind, shape, data.reshape(math.prod(shape[:-1]), -1))
        spans = [(0, 0, ""), *sorted(spans), (num_data_bytes, num_data_bytes, "")]
        for (_, end, name), (begin, _, following) in itertools.pairwise(spans):
            if begin < end:
                self._fail(f"the tensors {name!r} and {following!r} overlap")
            if begin > end:
                self._fail(f"bytes {end} to {begin} of the data belong to no tensor")
        return TensorTable(table)

    def _claims(self, what: str, entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
        """dtype, shape, begin and end of one entry, of the right kinds."""
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _ELEMENT_BITS:
            self._fail(f"{what} has the dtype {dtype!r:.40}, which the format does not have")
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(n) for n in shape):
            self._fail(f"{what} has the shape {shape!r:.80}: it must be a list of up to {MAX_DIMENSIONS} sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
            self._fail(f"{what} has data_offsets={offsets!r:.80}: they must be two byte positions")
        return dtype, tuple(shape), offsets[0], offsets[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


class _Scanner:
    """Walks over an object of strings and flat objects, as a header is one."""

    def __init__(self, text: str, fail: Any) -> None:
        self._text = text
        self._fail = fail
        self._at = 0

    def _skip(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, characters: str, what: str) -> str:
        found = self._skip()
        if not found or found not in characters:
            self._fail(
                f"{what} is not valid JSON of this format at character {self._at}: {' or '.join(characters)} expected, not {found!r}"
            )
        self._at += 1
        return found

    def members(self, what: str) -> Any:
        """Yields the key of each member of an object; the caller reads the value before it asks for the next."""
        self._expect("{", what)
        if self._skip() == "}":
            self._at += 1
            return
        while True:
            key = self.string(what)
            self._expect(":", what)
            yield key
            if self._expect(",}", what) == "}":
                return

    def string(self, what: str) -> str:
        self._expect('"', what)
        try:
            value, self._at = scanstring(self._text, self._at, True)
        except ValueError as error:
            self._fail(f"{what} is not valid JSON: {error}")
        return str(value)

    def flat_object(self, what: str) -> Mapping[str, Any]:
        """An object with no other inside it, which ends at the next closing brace."""
        self._expect("{", what)
        end = self._text.find("}", self._at, self._at + _MAX_ENTRY_CHARACTERS)
        if end < 0:
            self._fail(f"{what} has an entry of more than {_MAX_ENTRY_CHARACTERS} characters or without an end")
        try:
            value: dict[str, Any] = json.loads(self._text[self._at - 1 : end + 1], object_pairs_hook=_without_repetition)
        except (ValueError, RecursionError) as error:
            self._fail(f"{what} is not valid JSON: {error}")
        self._at = end + 1
        return value

    def end(self) -> None:
        if self._skip():
            self._fail(f"the header goes on after its object, at character {self._at}")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value
