"""Quantising tensors to the bytes of GGUF's Q8_0 and Q4_1: groups of 32 with a scale, in 4 bits with a minimum too; and to
Q8_0's with one scale for a whole row.

*8 bits*: round to nearest with scale = max|x| / 127. *4 bits*: scale and minimum are searched for. Starting from several
divisions of [min, max], each group is rounded, the scale and minimum that fit these integers best are solved for (weighted least
squares) and rounded to halves, and the group is rounded again with them; whichever pair has the smallest weighted error wins, and plain
rounding over [min, max] is among them. An element's weight is rms(group) + |x|: large weights matter more
(``make_qkx2_quants`` in ggml-org/ggml, src/ggml-quants.c). Everything is computed as integers and scales will be read: from halves.

Work goes in runs of groups, or of rows, that fit the processor's cache, each written once into the result, so that besides the result
(and the memory-mapped source) next to nothing is held.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from octavo.config import available_cores
from octavo.weights.dequantize import dequantize_blocks
from octavo.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

GROUP = 32
SEARCH_STEPS = (15.0, 15.5, 16.0, 14.3)
"""Starting points of the search: into how many steps [min, max] is divided. Sixteen codes span 15: with more, both ends are clipped.

These four take the weighted error of normal and of Laplace distributed weights down to 0.87 and 0.88 of plain rounding's;
thirty-one from 13 to 19 would reach 0.85 and 0.86.
"""

_RUN_GROUPS = 2048  # a multiple of the groups in any block
_LARGEST_HALF = np.float32(65504)


def quantize_tensor(tensor: Tensor, kind: TensorType) -> UInt8Array:
    """The elements of a tensor of any type as ``kind``, Q8_0, I8_CHANNEL or Q4_1: uint8 (rows, bytes per row).

    Rows must be whole groups of 32. Raises ``ValueError`` that names the tensor for a NaN, an infinity or a magnitude that
    the halves of the format cannot scale.
    """
    quantize = _QUANTIZERS.get(kind)
    row_groups = tensor.shape[-1] // GROUP if tensor.shape else 0
    if quantize is None or not tensor.shape or tensor.shape[-1] % GROUP:
        raise ValueError(f"tensor {tensor.name!r} of type {tensor.type.name} and shape {tensor.shape} cannot be quantised to {kind.name}")
    data = tensor.data
    source = np.ascontiguousarray(data).reshape(-1, tensor.type.block_bytes)
    num_groups = len(source) * tensor.type.block_length // GROUP
    out = np.empty((num_groups, kind.block_bytes), np.uint8)
    length = GROUP * row_groups if kind is TensorType.I8_CHANNEL else GROUP  # that share a scale
    run_groups = max(1, _RUN_GROUPS // row_groups) * row_groups if kind is TensorType.I8_CHANNEL else _RUN_GROUPS

    def run(start: int) -> None:
        stop = min(start + run_groups, num_groups)
        first, last = (group * GROUP // tensor.type.block_length for group in (start, stop))
        values = dequantize_blocks(source[first:last], tensor.type).reshape(-1, length)
        try:
            quantize(values, out[start:stop])
        except FloatingPointError as error:
            raise ValueError(f"tensor {tensor.name!r} cannot be quantised: {error}") from None

    with ThreadPoolExecutor(min(available_cores(), max(1, num_groups // run_groups))) as pool:
        for _ in pool.map(run, range(0, num_groups, run_groups)):
            pass
    return out.reshape(len(data), -1)


def quantize_q8_0(values: Float32Array, out: UInt8Array) -> None:
    """values (n, 32 · m) into out (n · m, 34): n scales. No error is larger than half a step. Raises ``FloatingPointError``."""
    largest = np.abs(values).max(axis=1)
    _check_range(largest, 127)
    scale = (largest / np.float32(127)).astype(np.float16)
    too_small = scale.astype(np.float32) * np.float32(127.5) < largest  # rounded down too far, as small ones are
    scale = np.where(too_small, np.nextafter(scale, np.float16(np.inf)), scale)
    q = np.rint(values / np.where(scale == 0, np.float32(1), scale.astype(np.float32))[:, None]).clip(-127, 127)
    out[:, :2] = np.repeat(scale.astype("<f2"), len(out) // len(scale)).view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q.astype(np.int8).view(np.uint8).reshape(-1, GROUP)


def quantize_q4_1(values: Float32Array, out: UInt8Array, steps: tuple[float, ...] = SEARCH_STEPS) -> None:
    """values (groups, 32) into out (groups, 20). ``steps=()`` is plain rounding. Raises ``FloatingPointError``."""
    x = np.ascontiguousarray(values.T)  # (32, groups): sums over a group run down contiguous rows
    low, high = x.min(axis=0), x.max(axis=0)
    _check_range(np.maximum(np.abs(low), np.abs(high)), 1)
    span = high - low
    weight = np.sqrt(np.mean(x * x, axis=0)) + np.abs(x)
    weight_sum, x_sum = weight.sum(axis=0), (weight * x).sum(axis=0)

    scale, minimum = _as_halves(span / np.float32(15)), _as_halves(low)
    best = _round(x, scale, minimum)
    best_error = _error(x, weight, best, scale, minimum)
    for num_steps in steps:
        step = span / np.float32(num_steps)
        start = low + (span - step * np.float32(15)) / 2  # the codes lie in the middle of the range
        q = _round(x, step, start)
        weighted = weight * q
        q_sum, qq_sum, qx_sum = weighted.sum(axis=0), (weighted * q).sum(axis=0), (weighted * x).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            determinant = weight_sum * qq_sum - q_sum * q_sum
            fit = _as_halves((weight_sum * qx_sum - x_sum * q_sum) / determinant)
            offset = _as_halves((qq_sum * x_sum - q_sum * qx_sum) / determinant)
        unusable = ~(np.isfinite(fit) & np.isfinite(offset) & (fit > 0))
        fit[unusable], offset[unusable] = scale[unusable], minimum[unusable]
        q = _round(x, fit, offset)
        error = _error(x, weight, q, fit, offset)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        scale, minimum = np.where(better, fit, scale), np.where(better, offset, minimum)
        best = np.where(better, q, best)
    codes = best.astype(np.uint8)
    out[:, 0:2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:4] = minimum.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 4:] = (codes[:16] | (codes[16:] << np.uint8(4))).T


def _as_halves(values: Float32Array) -> Float32Array:
    """Rounded to half precision, still float32."""
    return values.astype(np.float16).astype(np.float32)


def _round(x: Float32Array, scale: Float32Array, minimum: Float32Array) -> Float32Array:
    """The nearest of 0 … 15 for each element; 0 where the scale is 0."""
    inverse = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=inverse, where=scale > 0)
    q: Float32Array = (x - minimum) * inverse
    np.rint(q, out=q)
    np.clip(q, 0, 15, out=q)
    return q


def _error(x: Float32Array, weight: Float32Array, q: Float32Array, scale: Float32Array, minimum: Float32Array) -> Float32Array:
    """The weighted squared error of each group."""
    difference: Float32Array = q * scale
    difference += minimum
    difference -= x
    difference *= difference
    difference *= weight
    error: Float32Array = difference.sum(axis=0)
    return error


def _check_range(magnitude: Float32Array, steps: int) -> None:
    if not np.isfinite(magnitude).all():
        raise FloatingPointError("it holds a NaN or an infinity")
    if (magnitude > _LARGEST_HALF * steps).any():
        raise FloatingPointError(f"it holds the magnitude {float(magnitude.max()):.4g}, beyond {65504 * steps}")


_QUANTIZERS: dict[TensorType, Callable[[Float32Array, UInt8Array], None]] = {
    TensorType.Q8_0: quantize_q8_0,
    TensorType.I8_CHANNEL: quantize_q8_0,
    TensorType.Q4_1: quantize_q4_1,
}
