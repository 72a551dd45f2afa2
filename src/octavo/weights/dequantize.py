"""NumPy dequantisation of every supported tensor type to float32: plain, vectorised, the reference for the kernels.

A block of a quantised type holds 32 consecutive elements of a row (ggml-org/ggml, src/ggml-common.h):

    Q8_0   half d, 32 signed bytes q                      d * q
    Q4_0   half d, 16 bytes of nibbles                    d * (q - 8)
    Q4_1   half d, half m, 16 bytes of nibbles            d * q + m

Byte j of the nibbles holds element j in its low and element j + 16 in its high half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from octavo.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


def dequantize(tensor: Tensor) -> Float32Array:
    """The tensor's elements as a new, writeable, C-contiguous float32 array of ``tensor.shape``."""
    kind = tensor.type
    elements = _DECODERS[kind](np.ascontiguousarray(tensor.data).reshape(-1, kind.block_bytes))  # (blocks, block length)
    return elements.reshape(tensor.shape)


def _halves(blocks: UInt8Array, start: int) -> Float32Array:
    """(blocks, 1): the IEEE half at byte ``start`` of each block."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _nibbles(blocks: UInt8Array, start: int) -> Float32Array:
    """(blocks, 32): the unsigned 4-bit values in the 16 bytes from ``start``."""
    packed = blocks[:, start : start + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _f32(blocks: UInt8Array) -> Float32Array:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: UInt8Array) -> Float32Array:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: UInt8Array) -> Float32Array:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * (_nibbles(blocks, 2) - np.float32(8))


def _q4_1(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * _nibbles(blocks, 4) + _halves(blocks, 2)


_DECODERS: Mapping[TensorType, Callable[[UInt8Array], Float32Array]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
}
