"""A reader of one GGUF file, versions 2 and 3, over a memory map.

Layout (ggml-org/ggml, docs/gguf.md): a header of counts, the key-value pairs, the tensor table, padding to
``general.alignment``, the data. Metadata becomes plain Python values; tensors stay where they are: each ``Tensor.data`` is
a read-only view into the map, so opening a file reads only its header. Files come from anywhere, so every count,
offset and size is checked against the bytes that are there before anything is allocated; whatever is wrong ends in
a ``ValueError`` that names the file and the fault.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from octavo.weights.fingerprint import file_fingerprint
from octavo.weights.table import TensorTable
from octavo.weights.tensor import Tensor, TensorType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ARRAY_LENGTH = 1 << 22
"""Elements of a metadata array. The largest vocabularies have a quarter of a million tokens, and half a million merges."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, struct.Struct] = {
    code: struct.Struct("<" + form)
    for code, form in ((0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"), (7, "B"), (10, "Q"), (11, "q"), (12, "d"))
}
_SCALAR_DTYPES: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_MIN_KEY_VALUE_BYTES = 8 + 4 + 1  # an empty key, its type, the smallest value
_MIN_TENSOR_INFO_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, the number of dimensions, one of them, the type, the offset

GGML_TYPE_NAMES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""ggml's numbers of tensor types (``enum ggml_type``), supported here or not: an error message names them."""


class _Cursor:
    """Reads little-endian values front to back and refuses to step outside the file."""

    __slots__ = ("buffer", "path", "position", "size")

    def __init__(self, path: Path, buffer: mmap.mmap, size: int) -> None:
        self.path = path
        self.buffer = buffer
        self.size = size
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what}")

    def _advance(self, num_bytes: int, what: str) -> int:
        start = self.position
        if num_bytes > self.size - start:
            self.fail(f"truncated: {what} needs {num_bytes} bytes at offset {start}, and the file ends at {self.size}")
        self.position = start + num_bytes
        return start

    def take(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.buffer, self._advance(form.size, what))[0]

    def u32(self, what: str) -> int:
        return int(self.take(_SCALARS[4], what))

    def u64(self, what: str) -> int:
        return int(self.take(_SCALARS[10], what))

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """``count`` strings; one tight loop, because a tokenizer has a hundred thousand of them."""
        buffer, size, position = self.buffer, self.size, self.position
        length_at = _SCALARS[10].unpack_from
        values: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + length_at(buffer, position)[0]
                if position > size:
                    self.fail(f"truncated: {what} has a string of {position - start} bytes at offset {start}, and the file ends at {size}")
                values.append(buffer[start:position].decode())
        except struct.error:
            self.fail(f"truncated: {what} goes on past the end of the file, at {size}")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8 near offset {start}: {error}")
        self.position = position
        return values

    def value(self, kind: int, what: str) -> Any:
        """One metadata value of GGUF type ``kind``: int, float, bool, str or a list of these."""
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        form = _SCALARS.get(kind)
        if form is None:
            self.fail(f"{what} has the unknown value type {kind}")
        value = self.take(form, what)
        return bool(value) if kind == _BOOL else value

    def _array(self, what: str) -> list[Any]:
        kind, count = self.u32(what), self.u64(what)
        if kind == _ARRAY:
            self.fail(f"{what} is an array of arrays, which is not supported")
        form = _SCALARS.get(kind)
        if form is None and kind != _STRING:
            self.fail(f"{what} is an array of the unknown value type {kind}")
        if count > MAX_ARRAY_LENGTH:
            self.fail(f"{what} claims {count} elements; at most {MAX_ARRAY_LENGTH} are accepted")
        element_bytes = 8 if form is None else form.size
        if count * element_bytes > self.size - self.position:
            self.fail(f"truncated: {what} claims {count} elements at offset {self.position}, and the file ends at {self.size}")
        if form is None:
            return self.strings(count, what)
        start = self._advance(count * element_bytes, what)
        values = np.frombuffer(self.buffer, _SCALAR_DTYPES[kind], count, start)
        if kind == _BOOL:
            values = values.astype(bool)
        return list(values.tolist())

    def count(self, element_bytes: int, what: str) -> int:
        """A number of things that take at least ``element_bytes`` each."""
        count = self.u64(f"the number of {what}")
        if count * element_bytes > self.size - self.position:
            self.fail(f"claims {count} {what}, more than its {self.size} bytes can hold")
        return count


class GGUFFile:
    """One open GGUF file: a whole model, or a part of one. Tensor views keep the map alive; the file must not be changed meanwhile.

    Raises ``FileNotFoundError`` and other ``OSError`` when the file cannot be opened, ``ValueError`` when it is not a sound GGUF file.
    A tensor of a type that Octavo does not read is refused when it is looked up.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self._status = os.fstat(file.fileno())
            if self._status.st_size < 24:
                raise ValueError(f"{self.path}: not a GGUF file: it has {self._status.st_size} bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self.path, self._map, len(self._map))
        num_tensors, num_pairs = self._read_header(cursor)
        self._metadata = self._read_metadata(cursor, num_pairs)
        self._tensors = self._read_tensors(cursor, num_tensors)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """int, float, bool, str and lists of these, in the file's order."""
        return MappingProxyType(self._metadata)

    @property
    def tensors(self) -> TensorTable:
        """By name, in the file's order."""
        return self._tensors

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits: the beginning of the whole file's SHA-256."""
        return file_fingerprint(self.path, memoryview(self._map), self._status)

    @staticmethod
    def _read_header(cursor: _Cursor) -> tuple[int, int]:
        magic = cursor.buffer[:4]
        if magic != MAGIC:
            cursor.fail(f"not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
        cursor.position = 4
        version = cursor.u32("the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (2, 3):
                cursor.fail("is a big-endian GGUF file; only little-endian ones are supported")
            cursor.fail(f"GGUF version {version} is not supported; versions 2 and 3 are")
        num_tensors = cursor.count(_MIN_TENSOR_INFO_BYTES, "tensors")
        num_pairs = cursor.count(_MIN_KEY_VALUE_BYTES, "key-value pairs")
        return num_tensors, num_pairs

    @staticmethod
    def _read_metadata(cursor: _Cursor, num_pairs: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(num_pairs):
            key = cursor.string(f"the key of metadata pair {index}")
            if key in metadata:
                cursor.fail(f"the metadata key {key!r} occurs twice")
            metadata[key] = cursor.value(cursor.u32(f"the type of {key!r}"), f"the value of {key!r}")
        return metadata

    def _read_tensors(self, cursor: _Cursor, num_tensors: int) -> TensorTable:
        alignment = self._metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not _is_alignment(alignment):
            cursor.fail(f"general.alignment={alignment!r} is invalid: it must be a power of two from 1 to {MAX_ALIGNMENT}")
        found: dict[str, _Entry] = {}
        for index in range(num_tensors):
            name = cursor.string(f"the name of tensor {index}")
            if name in found:
                cursor.fail(f"the tensor {name!r} occurs twice")
            found[name] = _read_tensor_info(cursor, name, alignment)
        data_start = -(-cursor.position // alignment) * alignment
        bytes_of_file = np.frombuffer(self._map, np.uint8)
        spans: list[tuple[int, int, str]] = []
        entries: dict[str, Tensor | str] = {}
        for name, entry in found.items():
            start, end = data_start + entry.offset, data_start + entry.offset + entry.num_bytes
            if end > cursor.size:
                cursor.fail(f"truncated: the tensor {name!r} ends at byte {end}, and the file at {cursor.size}")
            if isinstance(entry.type, str):
                entries[name] = entry.type
                continue
            spans.append((start, end, name))
            rows = math.prod(entry.shape[:-1])
            entries[name] = Tensor(name, entry.type, entry.shape, bytes_of_file[start:end].reshape(rows, entry.num_bytes // rows))
        spans.sort()
        for (_, end, name), (start, _, following) in itertools.pairwise(spans):
            if start < end:
                cursor.fail(f"the tensors {name!r} and {following!r} overlap")
        return TensorTable(entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the tensor table. ``type`` is the refusal when it is not one that can be read; ``num_bytes`` is 0 then."""

    type: TensorType | str
    shape: tuple[int, ...]  # NumPy's order
    offset: int  # in the data section
    num_bytes: int


def _is_alignment(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0


def _read_tensor_info(cursor: _Cursor, name: str, alignment: int) -> _Entry:
    what = f"the tensor {name!r}"
    num_dimensions = cursor.u32(what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"{what} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
    shape = tuple(reversed([cursor.u64(what) for _ in range(num_dimensions)]))  # the file has the fastest dimension first
    code = cursor.u32(what)
    offset = cursor.u64(what)
    if 0 in shape:
        cursor.fail(f"{what} has the shape {shape}: no dimension may be 0")
    if offset % alignment:
        cursor.fail(f"{what} lies at offset {offset}, which is not aligned to {alignment} bytes")
    type_name = GGML_TYPE_NAMES.get(code)
    if type_name is None:
        return _Entry(f"{cursor.path}: {what} has the unknown ggml type {code}", shape, offset, 0)
    kind = TensorType.__members__.get(type_name)
    if kind is None:
        supported = ", ".join(t.name for t in TensorType)
        refusal = f"{cursor.path}: {what} has the type {type_name}, which is not supported; supported are {supported}"
        return _Entry(refusal, shape, offset, 0)
    if shape[-1] % kind.block_length:
        cursor.fail(f"{what} has rows of {shape[-1]} elements, not a multiple of the {kind.block_length} in a block of {type_name}")
    num_bytes = kind.num_bytes(math.prod(shape))
    if num_bytes > cursor.size:
        cursor.fail(f"truncated: {what} of shape {shape} takes {num_bytes} bytes, and the file has {cursor.size}")
    return _Entry(kind, shape, offset, num_bytes)
