"""KV storage in blocks: an array of all-layer blocks, each head's share holding K transposed and then V.

    block = [layer][kv_head]{ K [head_dim][token], V [token][head_dim] }

Elements are rounded to the cache's dtype when written and come back as float64, so whoever reads them, a token's
own step included, reads the rounded numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Float32Array, UInt8Array
from octavo.config import KVDType
from octavo.program import KVSpec

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]

DTYPES: dict[KVDType, type[np.float32] | type[np.float16]] = {"fp32": np.float32, "fp16": np.float16}


def block_bytes(spec: KVSpec, block_size: int, dtype: KVDType) -> int:
    """Bytes of one block: K and V of ``block_size`` tokens for all layers and KV heads."""
    return spec.elements_per_token * block_size * np.dtype(DTYPES[dtype]).itemsize


class KVStorage:
    """``num_blocks`` blocks; ``fill_nan`` poisons them, otherwise they hold zeros. ``MemoryError`` if they do not fit."""

    def __init__(self, spec: KVSpec, block_size: int, dtype: KVDType, num_blocks: int, *, fill_nan: bool = False) -> None:
        share = block_size * spec.head_dim  # elements of K, or of V, that one head holds
        shape = (num_blocks, spec.num_layers, spec.num_kv_heads, 2 * share)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.blocks = np.full(shape, np.nan, DTYPES[dtype]) if fill_nan else np.zeros(shape, DTYPES[dtype])
        self.keys = self.blocks[..., :share].reshape(*shape[:3], spec.head_dim, block_size)  # a view
        self.values = self.blocks[..., share:].reshape(*shape[:3], block_size, spec.head_dim)  # a view

    def write(self, layer: int, slots: IntArray, k: Float32Array, v: Float32Array) -> None:
        """k, v: (T, num_kv_heads, head_dim); row t goes to slot ``slots[t]`` = block · block_size + token in block."""
        with np.errstate(over="ignore"):  # what fp16 cannot hold becomes infinite, as the hardware rounds it
            for slot, key, value in zip(slots.tolist(), k, v, strict=True):
                block, token = divmod(slot, self.block_size)
                self.keys[block, layer, :, :, token] = key
                self.values[block, layer, :, token, :] = value

    def read(self, layer: int, table: IntArray, num_tokens: int) -> tuple[Float64Array, Float64Array]:
        """K and V (num_tokens, num_kv_heads, head_dim) of the first tokens of a block table; no other slot is touched."""
        token = np.arange(num_tokens)
        block, token = table[token // self.block_size], token % self.block_size
        k = self.keys[block, layer, :, :, token]
        v = self.values[block, layer, :, token]
        return k.astype(np.float64), v.astype(np.float64)

    def copy(self, source: int, destination: int) -> None:
        self.blocks[destination] = self.blocks[source]

    def read_block(self, block: int) -> UInt8Array:
        data: UInt8Array = self.blocks[block].reshape(-1).view(np.uint8).copy()
        return data

    def write_block(self, block: int, data: UInt8Array) -> None:
        self.blocks[block] = data.view(self.blocks.dtype).reshape(self.blocks.shape[1:])
