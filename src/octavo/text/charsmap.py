"""A check of SentencePiece's precompiled map of characters before the library walks it.

The map is a double array (Yata's, as darts-clone packs it: 32-bit units with an offset, a label and a leaf bit) that leads from bytes
of UTF-8 to a place in a text of replacements, each ended by a zero byte. The library trusts it; a broken one would end in a
panic in the middle of some later request. So every unit that can be reached is visited once, here, at load.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_LABEL_BITS = np.uint32((1 << 31) | 0xFF)
_LEAF_BIT = np.uint32(1 << 8)
_VALUE_BITS = np.uint32((1 << 31) - 1)


def check_charsmap(charsmap: bytes) -> None:
    """Raises ``ValueError`` that says what is wrong with ``charsmap``."""
    if len(charsmap) < 8:
        raise ValueError(f"{len(charsmap)} bytes are too few")
    (size,) = struct.unpack_from("<I", charsmap)
    if size % 4 or size == 0 or size > len(charsmap) - 4:
        raise ValueError(f"it claims an array of {size} bytes in {len(charsmap)}")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    replacements = charsmap[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"its replacements are not UTF-8: {error}") from error
    starts = _values(units)
    if starts.size and starts.max() >= len(replacements):
        raise ValueError(f"it leads to a replacement at {starts.max()} of {len(replacements)} bytes")
    if any(0x80 <= replacements[start] < 0xC0 for start in starts):
        raise ValueError("it leads into the middle of a character")


def _values(units: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Where all leaves lead.

    A unit at ``p`` with label ``c`` can only be the child of the node at ``p ^ c``, so a level of the tree is found in one pass over
    the units, without trying every byte at every node.
    """
    labels = units & _LABEL_BITS
    places = np.arange(units.size, dtype=np.uint32)
    parents = places ^ labels
    nodes = places ^ _offsets(units)
    candidates = np.flatnonzero((labels >= 1) & (labels <= 0xFF) & (parents < units.size))
    reached = np.zeros(units.size, bool)
    level = _offsets(units[:1])
    found = [np.empty(0, np.uint32)]
    while level.size:
        if (furthest := (level | 0xFF).max()) >= units.size:
            raise ValueError(f"its array of {units.size} units leads to unit {furthest}")
        reached[level] = True
        is_child = reached[parents[candidates]]
        children, candidates = candidates[is_child], candidates[~is_child]
        level = nodes[children]
        leaves = level[(units[children] & _LEAF_BIT) != 0]
        if leaves.size and leaves.max() >= units.size:
            raise ValueError(f"its array of {units.size} units leads to unit {leaves.max()}")
        found.append(units[leaves] & _VALUE_BITS)
    return np.unique(np.concatenate(found))


def _offsets(units: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (units >> np.uint32(10)) << ((units & np.uint32(1 << 9)) >> np.uint32(6))
