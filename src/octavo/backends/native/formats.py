"""How the native backend keeps each tensor type in memory, and a line at load that says which tensors grow."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from octavo import _native
from octavo.backends.native.packed_layout import PackedLayout, PackedPlace, source_type
from octavo.weights.tensor import TensorType

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """``format``: its name in ``native/packed.hpp``. ``bits_per_weight``: in memory, with scales."""

    format: str
    bits_per_weight: float


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """All matrices of one type: their bytes in the file and once packed."""

    type: TensorType
    packed: PackedFormat
    num_matrices: int
    file_bytes: int
    packed_bytes: int

    def __str__(self) -> str:
        size = f"{self.file_bytes / 2**20:.1f} → {self.packed_bytes / 2**20:.1f} MiB"
        return f"{self.num_matrices} × {self.type.name} as {self.packed.format} ({size})"


def packed_format(kind: TensorType, dequantize: bool = False) -> PackedFormat:
    """What tensors of type ``kind`` become; all become fp32 with ``dequantize``."""
    if dequantize:
        return PackedFormat("F32", 32.0)
    return PackedFormat(*_native.describe_packing(source_type(kind)))


def packed_groups(layout: PackedLayout) -> list[PackedGroup]:
    """The matrices gathered by type, largest part of the file first."""
    found: dict[TensorType, list[PackedPlace]] = {}
    for place in layout.places:
        found.setdefault(TensorType[place.type], []).append(place)
    groups = [
        PackedGroup(
            type=kind,
            packed=packed_format(kind, layout.dequantize),
            num_matrices=len(places),
            file_bytes=sum(kind.num_bytes(place.n * place.k) for place in places),
            packed_bytes=sum(place.num_bytes for place in places),
        )
        for kind, places in found.items()
    ]
    return sorted(groups, key=lambda group: -group.file_bytes)


def log_packing(layout: PackedLayout) -> None:
    """One line (INFO): each type of matrix, its packed format, its size in the file and in memory."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("weights: %s", "; ".join(map(str, packed_groups(layout))))
