"""``PackedLayout``: which matrices of a program are packed how, and where each lies in one region of memory or of a file.

It is planned from the program and the tensors' types before a single weight is read. Its ``identity`` says everything that
decides the packed bytes apart from the weights themselves, among it a digest of what the packers make of a fixed probe: two
builds that pack alike share files, and a change of the layout never reads what another wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from octavo import _native
from octavo.program import Embedding, Linear, Program
from octavo.weights.tensor import Tensor, TensorType

ALIGNMENT = 64
PAGE = 4096
_PAGED_FROM_BYTES = 1 << 20
"""Matrices of this size begin at a page."""


def source_type(tensor_type: TensorType) -> Any:
    """The native side's name of it."""
    return getattr(_native.SourceType, tensor_type.name)


@dataclass(frozen=True, slots=True)
class PackedPlace:
    """A matrix of ``n`` output columns and ``k`` inputs, packed in ``num_bytes`` at ``offset`` of the region."""

    name: str
    type: str
    format: int
    n: int
    k: int
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class PackedLayout:
    places: tuple[PackedPlace, ...]
    num_bytes: int
    dequantize: bool

    @cached_property
    def identity(self) -> str:
        """JSON text; the same for the same program, types and packers."""
        probes = {kind: _probe_digest(TensorType[kind], self.dequantize) for kind in sorted({p.type for p in self.places})}
        table = [astuple(place) for place in self.places]
        return json.dumps({"matrices": table, "bytes": self.num_bytes, "packers": probes, "dequantize": self.dequantize})


def plan_layout(program: Program, tensors: Mapping[str, Tensor], dequantize: bool) -> PackedLayout:
    """Raises ``ValueError`` naming a tensor that cannot be packed."""
    matrices = {op.weight for op in program.ops if isinstance(op, Embedding)}
    matrices.update(name for op in program.ops if isinstance(op, Linear) for name in op.weights)
    places, offset = [], 0
    for name, shape in program.weights.items():
        if name not in matrices:
            continue
        n, k = shape
        kind = tensors[name].type
        source = source_type(kind)
        try:
            num_bytes = int(_native.packed_bytes(source, dequantize, n, k))
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
        offset = round_up(offset, PAGE if num_bytes >= _PAGED_FROM_BYTES else ALIGNMENT)
        places.append(PackedPlace(name, kind.name, int(_native.packed_format(source, dequantize)), n, k, offset, num_bytes))
        offset += num_bytes
    return PackedLayout(tuple(places), offset, dequantize)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@cache
def _probe_digest(kind: TensorType, dequantize: bool) -> str:
    """Of two panels, the second not full, that hold every type's fields with many values, all scales finite."""
    n, k = 17, 256
    num_bytes = kind.num_bytes(n * k)
    data = (np.arange(num_bytes, dtype=np.int64) * 7 % 61).astype(np.uint8).reshape(n, -1)
    if kind is TensorType.I8_CHANNEL:
        blocks = data.reshape(n, -1, kind.block_bytes)
        blocks[:, :, :2] = blocks[:, :1, :2]  # all blocks of a row have its scale
    return hashlib.sha256(_native.pack(source_type(kind), dequantize, data, k).data).hexdigest()[:16]
