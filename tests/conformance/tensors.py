"""Random checkpoint tensors of every storage type, and their values read by an independent decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.weights.tensor import Tensor, TensorType

Rng = np.random.Generator
INTEGER_TYPES = (TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1)
FLOAT_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16)
ALL_TYPES = FLOAT_TYPES + INTEGER_TYPES
"""The storage types that have kernels."""


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
    blocks = (*shape[:-1], shape[-1] // 32)
    scale_unit = std / (74 if type is TensorType.Q8_0 else 4.6)  # uniform bytes, uniform nibbles have these deviations
    scale = (rng.uniform(0.5, 1.3, blocks) * scale_unit * rng.choice([-1, 1], blocks)).astype(np.float16)
    parts = [scale.view(np.uint8).reshape(*blocks, 2)]
    if type is TensorType.Q4_1:
        minimum = (-8 * scale.astype(np.float64) + rng.normal(0, 0.3 * std, blocks)).astype(np.float16)
        parts.append(minimum.view(np.uint8).reshape(*blocks, 2))
    parts.append(rng.integers(0, 256, (*blocks, 32 if type is TensorType.Q8_0 else 16), dtype=np.uint8))
    return as_tensor(name, type, shape, np.concatenate(parts, axis=-1))


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
        case _:
            blocks = raw.reshape(-1, tensor.type.block_bytes)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
            if tensor.type is TensorType.Q8_0:
                flat = scale * blocks[:, 2:].view(np.int8)
            else:
                nibbles = blocks[:, -16:]
                q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float64)
                has_minimum = tensor.type is TensorType.Q4_1
                flat = scale * q + (blocks[:, 2:4].copy().view(np.float16) if has_minimum else -8 * scale)
    return np.asarray(flat, np.float64).reshape(tensor.shape)


def minimum_of(tensor: Tensor) -> npt.NDArray[np.float64]:
    """The part of each integer weight that does not depend on q: 0, -8 · scale or the stored minimum."""
    blocks = tensor.data.reshape(-1, tensor.type.block_bytes)
    first, second = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float64) for i in (0, 2))
    of_block = {TensorType.Q8_0: 0 * first, TensorType.Q4_0: -8 * first, TensorType.Q4_1: second}[tensor.type]
    return np.repeat(of_block, 32).reshape(tensor.shape)
