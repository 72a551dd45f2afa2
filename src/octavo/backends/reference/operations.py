"""What the operations compute: one function each, over rows of float32, in float64 inside and rounded once at the end.

No result depends on how many rows there are: everything that sums does so for one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Float32Array
from octavo.backends.reference.kv import LEAST_MAGNITUDE, Float64Array, IntArray, KVStorage
from octavo.program import PagedAttention, Rope, RopeStyle
from octavo.weights.tensor import TensorType

GROUP = 32
"""Elements of an activation row that share a scale when it meets an integer weight."""

INTEGER_TYPES = frozenset(kind for kind in TensorType if not kind.is_float)


@dataclass(frozen=True, slots=True)
class Weight:
    """``data``: float32, exact values of the stored tensor. ``integer``: it multiplies activations rounded to int8."""

    data: Float32Array
    integer: bool


def quantize_activations(x: Float32Array) -> Float64Array:
    """x (T, k), k a multiple of 32, rounded as integer weights see it: per row and group of 32,
    scale = max|x| / 127 and q = round-half-to-even(x · (127 / max|x|)), all in float32; returns scale · q.
    A group whose scale would be subnormal becomes zeros; a NaN or an infinity makes its whole group NaN.
    """
    groups = x.reshape(len(x), x.shape[1] // GROUP, GROUP)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        q = np.rint(groups * (np.float32(127) / most))
        rounded = np.where(most < LEAST_MAGNITUDE, 0.0, q.astype(np.float64) * (most / np.float32(127)))
    return rounded.reshape(x.shape)


def linear(x: Float32Array, weight: Weight, bias: Float32Array | None) -> Float32Array:
    """x (T, k) times weight (n, k) transposed, plus bias (n,): (T, n)."""
    rows = quantize_activations(x) if weight.integer else x.astype(np.float64)
    matrix = weight.data.astype(np.float64)
    out = np.empty((len(rows), len(matrix)), np.float32)
    for result, row in zip(out, rows, strict=True):
        product = matrix @ row  # a matrix times a vector: its order of summation cannot depend on other rows
        result[:] = product if bias is None else product + bias
    return out


def rms_norm(x: Float32Array, weight: Float32Array, eps: float) -> Float32Array:
    out = np.empty(x.shape, np.float32)
    for result, row in zip(out, x.astype(np.float64), strict=True):
        result[:] = row / np.sqrt(np.mean(row * row) + eps) * weight
    return out


def rope_table(op: Rope, max_model_len: int) -> tuple[Float32Array, Float32Array]:
    """Cosines and sines (max_model_len, rotary_dim / 2), computed in float64 and kept in float32."""
    angles = np.arange(max_model_len, dtype=np.float64)[:, None] * np.array(op.inv_freq, np.float64)
    return (
        (np.cos(angles) * op.attention_factor).astype(np.float32),
        (np.sin(angles) * op.attention_factor).astype(np.float32),
    )


def rope(x: Float32Array, cos: Float32Array, sin: Float32Array, op: Rope) -> Float32Array:
    """Rotates the pairs of each head of x (T, heads · head_dim) by the angles of its row: cos, sin (T, rotary_dim / 2)."""
    heads = x.reshape(len(x), x.shape[1] // op.head_dim, op.head_dim)
    half = op.rotary_dim // 2
    if op.style is RopeStyle.INTERLEAVED:
        first, second = slice(0, op.rotary_dim, 2), slice(1, op.rotary_dim, 2)
    else:
        first, second = slice(0, half), slice(half, op.rotary_dim)
    a, b = heads[..., first].astype(np.float64), heads[..., second].astype(np.float64)
    c, s = cos[:, None, :].astype(np.float64), sin[:, None, :].astype(np.float64)
    out = heads.copy()
    out[..., first] = a * c - b * s
    out[..., second] = a * s + b * c
    return out.reshape(x.shape)


def attention(op: PagedAttention, kv: KVStorage, q: Float32Array, table: IntArray, positions: npt.NDArray[np.int32]) -> Float32Array:
    """q (T, num_heads · head_dim) of one sequence, whose K and V are in its blocks; the query at p sees positions 0 … p."""
    out = np.empty(q.shape, np.float32)
    group = op.num_heads // op.num_kv_heads
    all_keys, all_values = kv.read(op.layer, table, int(positions[-1]) + 1)
    for head in range(op.num_heads):
        columns = slice(head * op.head_dim, (head + 1) * op.head_dim)
        head_keys = np.ascontiguousarray(all_keys[:, head // group])  # (positions seen by the last query, head_dim)
        head_values = np.ascontiguousarray(all_values[:, head // group])
        for row, position in enumerate(positions.tolist()):
            keys, values = head_keys[: position + 1], head_values[: position + 1]
            scores = np.sum(keys * q[row, columns], axis=1) * op.scale
            weights = np.exp(scores - scores.max())
            out[row, columns] = np.sum(weights[:, None] * values, axis=0) / weights.sum()
    return out


def silu_mul(gate: Float32Array, up: Float32Array) -> Float32Array:
    g = gate.astype(np.float64)
    with np.errstate(over="ignore"):  # exp(-x) may be infinite: silu is then -0
        return (g / (1.0 + np.exp(-g)) * up).astype(np.float32)
