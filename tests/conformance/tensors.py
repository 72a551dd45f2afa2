"""Random checkpoint tensors of every storage type, and their values read by an independent decoder."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from octavo.weights.dequantize import scales_and_minimums
from octavo.weights.tensor import Tensor, TensorType

Rng = np.random.Generator
INTEGER_TYPES = (
    TensorType.Q8_0,
    TensorType.I8_CHANNEL,
    TensorType.Q4_0,
    TensorType.Q4_1,
    TensorType.Q5_0,
    TensorType.Q5_1,
    TensorType.IQ4_NL,
)
"""Those in blocks of 32."""
WIDE_TYPES = (TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K, TensorType.IQ4_XS)
"""Those in blocks of 256: rows have a multiple of that."""
FLOAT_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16)
ALL_TYPES = FLOAT_TYPES + INTEGER_TYPES
"""Those of any width that is a multiple of 32."""
EVERY_TYPE = ALL_TYPES + WIDE_TYPES


def whole_blocks(width: int, *types: TensorType) -> int:
    """``width``, or the next one that all types may have."""
    length = max(type.block_length for type in types)
    return -(-width // length) * length


def as_tensor(name: str, type: TensorType, shape: tuple[int, ...], raw: npt.NDArray[np.generic]) -> Tensor:
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return Tensor(name, type, shape, np.ascontiguousarray(raw).view(np.uint8).reshape(rows, -1))


def float_tensor(name: str, values: npt.ArrayLike, type: TensorType = TensorType.F32) -> Tensor:
    """A tensor of ``values`` rounded to F32, F16 or BF16 (BF16 by cutting the low 16 bits off)."""
    array = np.asarray(values, np.float32)
    match type:
        case TensorType.F32:
            return as_tensor(name, type, array.shape, array)
        case TensorType.F16:
            return as_tensor(name, type, array.shape, array.astype(np.float16))
        case TensorType.BF16:
            return as_tensor(name, type, array.shape, (array.view(np.uint32) >> 16).astype(np.uint16))
        case _:
            raise ValueError(f"{type} does not store floats")


def random_tensor(rng: Rng, name: str, type: TensorType, shape: tuple[int, ...], std: float | None = None) -> Tensor:
    """Weights of standard deviation about ``std`` (1/sqrt of the inputs if not given); integer types get random bytes."""
    std = shape[-1] ** -0.5 if std is None else std
    if type in FLOAT_TYPES:
        return float_tensor(name, rng.normal(0, std, shape), type)
    if type in WIDE_TYPES:
        return as_tensor(name, type, shape, _wide_blocks(rng, type, (*shape[:-1], shape[-1] // 256), std))
    blocks = (*shape[:-1], shape[-1] // 32)
    q_std = {TensorType.Q8_0: 74, TensorType.I8_CHANNEL: 74, TensorType.IQ4_NL: 69, TensorType.Q5_0: 9.2, TensorType.Q5_1: 9.2}.get(
        type, 4.6
    )
    scale = _halves(rng.uniform(0.5, 1.3, blocks) * std / q_std * rng.choice([-1, 1], blocks))
    if type is TensorType.I8_CHANNEL:
        scale[:] = scale[..., :1, :]
    parts = [scale.view(np.uint8)]
    if type in (TensorType.Q4_1, TensorType.Q5_1):
        centre = -8 if type is TensorType.Q4_1 else -16
        parts.append(_halves(centre * scale[..., 0].astype(np.float64) + rng.normal(0, 0.3 * std, blocks)).view(np.uint8))
    num_bytes = type.block_bytes - sum(part.shape[-1] for part in parts)
    parts.append(rng.integers(0, 256, (*blocks, num_bytes), dtype=np.uint8))
    return as_tensor(name, type, shape, np.concatenate(parts, axis=-1))


def _halves(values: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """(…, 1) for (…): what a block holds beside its bytes."""
    return np.asarray(values)[..., None].astype(np.float16)


def _wide_blocks(rng: Rng, type: TensorType, blocks: tuple[int, ...], std: float) -> npt.NDArray[np.uint8]:
    """(…, bytes per block). ``unit``: about the deviation of the integers that d multiplies."""
    unit = {TensorType.Q4_K: 255, TensorType.Q5_K: 510, TensorType.Q2_K: 14, TensorType.Q3_K: 43, TensorType.Q6_K: 1350}.get(type, 1280)
    scale = rng.uniform(0.7, 1.4, blocks) * std / unit
    signed = _halves(scale * rng.choice([-1, 1], blocks)).view(np.uint8)

    def random_bytes(count: int) -> npt.NDArray[np.uint8]:
        return rng.integers(0, 256, (*blocks, count), dtype=np.uint8)

    match type:
        case TensorType.Q4_K | TensorType.Q5_K:
            minimum = scale * (7.5 if type is TensorType.Q4_K else 15.5)
            return np.concatenate([_halves(scale).view(np.uint8), _halves(minimum).view(np.uint8), random_bytes(type.block_bytes - 4)], -1)
        case TensorType.Q2_K:
            minimum = 2 * scale
            return np.concatenate([random_bytes(80), _halves(scale).view(np.uint8), _halves(minimum).view(np.uint8)], -1)
        case TensorType.Q3_K | TensorType.Q6_K:
            return np.concatenate([random_bytes(type.block_bytes - 2), signed], -1)
        case _:
            return np.concatenate([signed, random_bytes(type.block_bytes - 2)], -1)


def values_of(tensor: Tensor) -> npt.NDArray[np.float64]:
    """The numbers a tensor stores, decoded block by block with ``struct``-like plainness, in float64."""
    raw = tensor.data.reshape(-1)
    match tensor.type:
        case TensorType.F32:
            flat = raw.view(np.float32).astype(np.float64)
        case TensorType.F16:
            flat = raw.view(np.float16).astype(np.float64)
        case TensorType.BF16:
            flat = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        case TensorType.Q8_0 | TensorType.I8_CHANNEL | TensorType.Q4_0 | TensorType.Q4_1:
            blocks = raw.reshape(-1, tensor.type.block_bytes)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
            if tensor.type in (TensorType.Q8_0, TensorType.I8_CHANNEL):
                flat = scale * blocks[:, 2:].view(np.int8)
            else:
                nibbles = blocks[:, -16:]
                q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float64)
                has_minimum = tensor.type is TensorType.Q4_1
                flat = scale * q + (blocks[:, 2:4].copy().view(np.float16) if has_minimum else -8 * scale)
        case _:
            flat = gguf.quants.dequantize(tensor.data, gguf.GGMLQuantizationType[tensor.type.name]).astype(np.float64)
    return np.asarray(flat, np.float64).reshape(tensor.shape)


def minimum_of(tensor: Tensor) -> npt.NDArray[np.float64]:
    """The part of each integer weight that does not depend on q, to the size it has: 0, some scale or the stored minimum."""
    blocks = tensor.data.reshape(-1, tensor.type.block_bytes)
    second = blocks[:, 2:4].copy().view(np.float16).astype(np.float64)
    match tensor.type:
        case TensorType.Q4_1 | TensorType.Q5_1:
            of_block = second
        case TensorType.Q4_K | TensorType.Q5_K:
            _, minimums = scales_and_minimums(blocks[:, 4:16])
            return np.repeat(-second * minimums, 32).reshape(tensor.shape)
        case TensorType.Q2_K:
            m = blocks[:, 82:84].copy().view(np.float16).astype(np.float64)
            return np.repeat(-m * (blocks[:, :16] >> 4), 16).reshape(tensor.shape)
        case _:
            return np.zeros(tensor.shape)
    return np.repeat(of_block, tensor.type.block_length).reshape(tensor.shape)
