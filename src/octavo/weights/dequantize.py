"""NumPy dequantisation of every supported tensor type to float32: plain, vectorised, the reference for the kernels.

A block holds 32 or 256 consecutive elements of a row (ggml-org/ggml, src/ggml-common.h and ggml-quants.c). With d, m halves and
q unsigned unless said otherwise:

    Q8_0     d, 32 signed bytes q                                   d · q
    I8_CHANNEL  as Q8_0
    Q4_0     d, 16 bytes of nibbles                                 d · (q - 8)
    Q4_1     d, m, 16 bytes of nibbles                              d · q + m
    Q5_0     d, 4 bytes of high bits, 16 bytes of nibbles           d · (q - 16)
    Q5_1     d, m, 4 bytes of high bits, 16 bytes of nibbles        d · q + m
    IQ4_NL   d, 16 bytes of nibbles                                 d · table[q]
    Q2_K     16 bytes of 4-bit (scale, min), 64 of q, d, m          (d · scale) · q - (m · min), 16 elements to a scale
    Q3_K     32 bytes of high bits, 64 of q, 12 of scales, d        (d · (scale - 32)) · (q - 4), 16 to a scale
    Q4_K     d, m, 12 bytes of 6-bit (scale, min), 128 of nibbles   (d · scale) · q - (m · min), 32 to a scale
    Q5_K     as Q4_K, with 32 bytes of high bits before the nibbles
    Q6_K     128 bytes of nibbles, 64 of high bits, 16 signed scales, d          (d · scale) · (q - 32), 16 to a scale
    IQ4_XS   d, 2 bytes of high and 4 of low bits of scales, 128 of nibbles      (d · (scale - 32)) · table[q], 32 to a scale

In blocks of 32, byte j of the nibbles holds element j in its low and element j + 16 in its high half. In blocks of 256 a run of w
bytes holds w elements in its lowest bits, the next w in the bits above them, and so on: the loops are in ``_fields``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from octavo.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

IQ4_TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The sixteen levels of IQ4_NL and IQ4_XS (``kvalues_iq4nl``)."""

_CHUNK_ELEMENTS = 1 << 18


def dequantize(tensor: Tensor) -> Float32Array:
    """The tensor's elements as a new, writeable, C-contiguous float32 array of ``tensor.shape``."""
    kind = tensor.type
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, kind.block_bytes)
    return dequantize_blocks(blocks, kind).reshape(tensor.shape)


def dequantize_blocks(blocks: UInt8Array, kind: TensorType) -> Float32Array:
    """(blocks, bytes per block) of type ``kind``, C-contiguous, to (blocks, block length)."""
    decode = _DECODERS[kind]
    elements = np.empty((len(blocks), kind.block_length), np.float32)
    step = max(1, _CHUNK_ELEMENTS // kind.block_length)  # so that what is in between stays in the processor's cache
    for start in range(0, len(blocks), step):
        elements[start : start + step] = decode(blocks[start : start + step])
    return elements


def _halves(blocks: UInt8Array, start: int) -> Float32Array:
    """(blocks, 1): the IEEE half at byte ``start`` of each block."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _fields(blocks: UInt8Array, start: int, stop: int, run: int, bits: int) -> UInt8Array:
    """(blocks, elements): the ``bits``-bit fields of bytes ``start`` … ``stop``, lowest bits of ``run`` bytes first."""
    packed = blocks[:, start:stop].reshape(len(blocks), (stop - start) // run, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    return ((packed >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(blocks), -1)


def _nibbles(blocks: UInt8Array, start: int) -> UInt8Array:
    """(blocks, 32): the 4-bit values in the 16 bytes from ``start``."""
    return _fields(blocks, start, start + 16, 16, 4)


def _signed(q: UInt8Array, zero: int) -> Float32Array:
    return q.astype(np.float32) - np.float32(zero)


def _scaled(scales: Float32Array, q: Float32Array) -> Float32Array:
    """scales (blocks, s) times q (blocks, elements), each scale for elements / s of them: (blocks, s, elements / s)."""
    return scales[:, :, None] * q.reshape(len(q), scales.shape[1], -1)


def _f32(blocks: UInt8Array) -> Float32Array:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: UInt8Array) -> Float32Array:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: UInt8Array) -> Float32Array:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * _signed(_nibbles(blocks, 2), 8)


def _q4_1(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * _signed(_nibbles(blocks, 4), 0) + _halves(blocks, 2)


def _five_bits(blocks: UInt8Array, start: int) -> UInt8Array:
    """(blocks, 32): 4 bytes with bit i for element i, then the nibbles."""
    high = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    return _nibbles(blocks, start + 4) | (high << np.uint8(4))


def _q5_0(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * _signed(_five_bits(blocks, 2), 16)


def _q5_1(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * _signed(_five_bits(blocks, 4), 0) + _halves(blocks, 2)


def _iq4_nl(blocks: UInt8Array) -> Float32Array:
    return _halves(blocks, 0) * IQ4_TABLE[_nibbles(blocks, 2)]


def _q2_k(blocks: UInt8Array) -> Float32Array:
    scales = _halves(blocks, 80) * _signed(blocks[:, :16] & np.uint8(15), 0)
    minimums = _halves(blocks, 82) * _signed(blocks[:, :16] >> np.uint8(4), 0)
    return (_scaled(scales, _signed(_fields(blocks, 16, 80, 32, 2), 0)) - minimums[:, :, None]).reshape(len(blocks), -1)


def _q3_k(blocks: UInt8Array) -> Float32Array:
    low = _fields(blocks, 96, 104, 8, 4)  # scale i: 4 bits in the nibbles of 8 bytes, 2 above them in 4 bytes
    high = _fields(blocks, 104, 108, 4, 2)
    scales = _halves(blocks, 108) * _signed(low | (high << np.uint8(4)), 32)
    q = _fields(blocks, 32, 96, 32, 2) | (_fields(blocks, 0, 32, 32, 1) << np.uint8(2))
    return _scaled(scales, _signed(q, 4)).reshape(len(blocks), -1)


def scales_and_minimums(packed: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """The 12 bytes (blocks, 12) of Q4_K and Q5_K as 6-bit scales and minimums (blocks, 8) each.

    Bytes 0-3 and 4-7 hold the first four scales and minimums in their low six bits; bytes 8-11 the low four bits of the last
    four (scale in the low, minimum in the high nibble), whose upper two bits are the upper bits of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    low_six = np.uint8(0x3F)
    scales = np.concatenate([first & low_six, (third & np.uint8(15)) | ((first >> np.uint8(2)) & np.uint8(0x30))], axis=1)
    minimums = np.concatenate([second & low_six, (third >> np.uint8(4)) | ((second >> np.uint8(2)) & np.uint8(0x30))], axis=1)
    return scales, minimums


def _q45_k(blocks: UInt8Array, q: UInt8Array) -> Float32Array:
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    offsets = _halves(blocks, 2) * _signed(minimums, 0)
    return (_scaled(_halves(blocks, 0) * _signed(scales, 0), _signed(q, 0)) - offsets[:, :, None]).reshape(len(blocks), -1)


def _q4_k(blocks: UInt8Array) -> Float32Array:
    return _q45_k(blocks, _fields(blocks, 16, 144, 32, 4))


def _q5_k(blocks: UInt8Array) -> Float32Array:
    return _q45_k(blocks, _fields(blocks, 48, 176, 32, 4) | (_fields(blocks, 16, 48, 32, 1) << np.uint8(4)))


def _q6_k(blocks: UInt8Array) -> Float32Array:
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    q = _fields(blocks, 0, 128, 64, 4) | (_fields(blocks, 128, 192, 32, 2) << np.uint8(4))
    return _scaled(scales, _signed(q, 32)).reshape(len(blocks), -1)


def _iq4_xs(blocks: UInt8Array) -> Float32Array:
    low = _fields(blocks, 4, 8, 1, 4)
    high = _fields(blocks, 2, 4, 1, 2)
    scales = _halves(blocks, 0) * _signed(low | (high << np.uint8(4)), 32)
    return _scaled(scales, IQ4_TABLE[_fields(blocks, 8, 136, 16, 4)]).reshape(len(blocks), -1)


_DECODERS: Mapping[TensorType, Callable[[UInt8Array], Float32Array]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q8_0: _q8_0,
    TensorType.I8_CHANNEL: _q8_0,
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q2_K: _q2_k,
    TensorType.Q3_K: _q3_k,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
    TensorType.IQ4_NL: _iq4_nl,
    TensorType.IQ4_XS: _iq4_xs,
}
