"""KV storage in blocks: an array of all-layer blocks, each head's share holding K transposed and then V.

    block = [layer][kv_head]{ K [head_dim][token], V [token][head_dim], and in int8 scales of K [token] and of V [token] }

Elements are rounded to the cache's dtype when written and come back as float64, so whoever reads them, a token's
own step included, reads the rounded numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Float32Array, UInt8Array, kv_bytes_per_token
from octavo.config import KVDType
from octavo.program import KVSpec

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]

DTYPES: dict[KVDType, type[np.float32] | type[np.float16] | type[np.int8]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

LEAST_MAGNITUDE = np.float32(127) * np.finfo(np.float32).smallest_normal
"""A head whose largest magnitude is smaller becomes zeros in int8: its scale would be subnormal."""


def block_bytes(spec: KVSpec, block_size: int, dtype: KVDType) -> int:
    """Bytes of one block: K and V of ``block_size`` tokens for all layers and KV heads, and their scales if any."""
    return kv_bytes_per_token(spec, dtype) * block_size


def quantize_heads(x: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """x (…, head_dim) as integers q of its shape and one scale for each head (…), both computed in float32.

    scale = max|x| / 127, q = round-half-to-even(x / scale). What is not all finite has scale NaN, what vanishes scale 0, and q 0.
    """
    most = np.abs(x).max(axis=-1)
    sound = np.isfinite(most) & (most >= LEAST_MAGNITUDE)
    scale = np.where(sound, most / np.float32(127), np.where(np.isfinite(most), np.float32(0), np.float32(np.nan)))
    divisor = np.where(sound, scale, np.float32(np.inf))[..., None]
    q = np.rint(np.where(sound[..., None], x, np.float32(0)) / divisor)
    return q.astype(np.int8), scale


class KVStorage:
    """``num_blocks`` blocks; ``fill_nan`` poisons them, otherwise they hold zeros. ``MemoryError`` if they do not fit."""

    def __init__(self, spec: KVSpec, block_size: int, dtype: KVDType, num_blocks: int, *, fill_nan: bool = False) -> None:
        element = np.dtype(DTYPES[dtype])
        shape = (num_blocks, spec.num_layers, spec.num_kv_heads)
        share = block_size * spec.head_dim * element.itemsize  # bytes of K, or of V, that one head holds
        head_bytes = block_bytes(KVSpec(1, 1, spec.head_dim), block_size, dtype)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.blocks = np.zeros((*shape, head_bytes), np.uint8)
        self.keys = self.blocks[..., :share].view(element).reshape(*shape, spec.head_dim, block_size)  # a view
        self.values = self.blocks[..., share : 2 * share].view(element).reshape(*shape, block_size, spec.head_dim)  # a view
        self.scales = self.blocks[..., 2 * share :].view(np.float32).reshape(*shape, 2, block_size) if dtype == "int8" else None  # a view
        if fill_nan:
            self.blocks[...] = 0xFF  # all ones are NaN, in every type of elements and scales

    def write(self, layer: int, slots: IntArray, k: Float32Array, v: Float32Array) -> None:
        """k, v: (T, num_kv_heads, head_dim); row t goes to slot ``slots[t]`` = block · block_size + token in block."""
        for slot, key, value in zip(slots.tolist(), k, v, strict=True):
            block, token = divmod(slot, self.block_size)
            if self.scales is not None:
                self.keys[block, layer, :, :, token], self.scales[block, layer, :, 0, token] = quantize_heads(key)
                self.values[block, layer, :, token, :], self.scales[block, layer, :, 1, token] = quantize_heads(value)
                continue
            with np.errstate(over="ignore"):  # what fp16 cannot hold becomes infinite, as the hardware rounds it
                self.keys[block, layer, :, :, token] = key
                self.values[block, layer, :, token, :] = value

    def read(self, layer: int, table: IntArray, num_tokens: int) -> tuple[Float64Array, Float64Array]:
        """K and V (num_tokens, num_kv_heads, head_dim) of the first tokens of a block table; no other slot is touched."""
        token = np.arange(num_tokens)
        block, token = table[token // self.block_size], token % self.block_size
        k = self.keys[block, layer, :, :, token].astype(np.float64)
        v = self.values[block, layer, :, token].astype(np.float64)
        if self.scales is not None:
            k *= self.scales[block, layer, :, 0, token][..., None]
            v *= self.scales[block, layer, :, 1, token][..., None]
        return k, v

    def copy(self, source: int, destination: int) -> None:
        self.blocks[destination] = self.blocks[source]

    def read_block(self, block: int) -> UInt8Array:
        data: UInt8Array = self.blocks[block].reshape(-1).copy()
        return data

    def write_block(self, block: int, data: UInt8Array) -> None:
        self.blocks[block] = data.reshape(self.blocks.shape[1:])
