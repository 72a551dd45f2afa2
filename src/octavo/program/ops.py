"""The operations a program is made of, and the values they pass on.

A value is a ragged matrix of float32: its rows are the step's tokens (``Rows.TOKENS``) or the rows whose
logits are wanted (``Rows.LOGITS``); only their number varies from step to step, never its width. A value is a
*column view* of a buffer, so that one wide projection can be used as Q, K and V without a copy.

Every operation writes each output buffer once (static single assignment). Operations are data: what
they compute is said in each docstring and done by the backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Rows(Enum):
    TOKENS = "tokens"
    LOGITS = "logits"


class RopeStyle(Enum):
    """Which elements of a head form a rotated pair.

    ``INTERLEAVED``: (0,1), (2,3), … as in GGUF files of the llama architecture. ``HALF_SPLIT`` (NEOX):
    (i, i + rotary_dim/2), as in Hugging Face checkpoints and most other GGUF architectures.
    """

    INTERLEAVED = "interleaved"
    HALF_SPLIT = "half_split"


@dataclass(frozen=True, slots=True)
class Value:
    """Columns ``offset … offset + width`` of buffer ``buffer``; float32, one row per token or logits row."""

    buffer: int
    rows: Rows
    offset: int
    width: int

    def columns(self, offset: int, width: int) -> Value:
        if offset < 0 or width <= 0 or offset + width > self.width:
            raise ValueError(f"columns {offset}…{offset + width} lie outside a value of width {self.width}")
        return Value(self.buffer, self.rows, self.offset + offset, width)


@dataclass(frozen=True, slots=True)
class Embedding:
    """out[t] = weight[token_ids[t]]. weight: (vocab, width)."""

    out: Value
    weight: str


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """out = x / sqrt(mean(x², axis=-1) + eps) * weight. weight: (width,)."""

    out: Value
    x: Value
    weight: str
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ concat(weights, axis=0).T (+ concat(biases)). weights[i]: (n_i, x.width); out.width = Σ n_i.

    ``biases`` is empty or as long as ``weights``; a ``None`` in it stands for zeros.
    """

    out: Value
    x: Value
    weights: tuple[str, ...]
    biases: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates the first ``rotary_dim`` elements of each head of x by position · inv_freq[i]; the rest is copied.

    ``inv_freq`` (rotary_dim / 2 floats, radians per position) is fixed when the program is written; cosines
    and sines are multiplied by ``attention_factor`` (YaRN's; 1 otherwise). The rotation of each position is
    taken from a table computed once in float64, so it never depends on the batch.
    """

    out: Value
    x: Value
    head_dim: int
    rotary_dim: int
    style: RopeStyle
    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Writes K and V of this step's tokens into the KV cache at ``slot_mapping``, then attends causally.

    q, out: (T, num_heads · head_dim); k, v: (T, num_kv_heads · head_dim). Query head h reads KV head
    h // (num_heads // num_kv_heads). Token at position p sees positions 0 … p of its own sequence:
    out = softmax(scale · q Kᵀ) V, where K and V are read back from the cache in the cache's dtype.
    """

    out: Value
    q: Value
    k: Value
    v: Value
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True, slots=True)
class SiluMul:
    """out = silu(gate) * up, silu(x) = x / (1 + exp(-x))."""

    out: Value
    gate: Value
    up: Value


@dataclass(frozen=True, slots=True)
class Add:
    """out = x + y (the residual connection)."""

    out: Value
    x: Value
    y: Value


@dataclass(frozen=True, slots=True)
class SelectRows:
    """out[i] = x[logits_rows[i]]: from the step's tokens to the rows whose logits are wanted."""

    out: Value
    x: Value


Op = Embedding | RMSNorm | Linear | Rope | PagedAttention | SiluMul | Add | SelectRows


def inputs_of(op: Op) -> tuple[Value, ...]:
    """The values that ``op`` reads."""
    match op:
        case Embedding():
            return ()
        case RMSNorm(x=x) | Linear(x=x) | Rope(x=x) | SelectRows(x=x):
            return (x,)
        case PagedAttention(q=q, k=k, v=v):
            return (q, k, v)
        case SiluMul(gate=gate, up=up):
            return (gate, up)
        case Add(x=x, y=y):
            return (x, y)


def weights_of(op: Op) -> tuple[str, ...]:
    """The names of the weights that ``op`` reads."""
    match op:
        case Embedding(weight=weight) | RMSNorm(weight=weight):
            return (weight,)
        case Linear(weights=weights, biases=biases):
            return weights + tuple(b for b in biases if b is not None)
        case _:
            return ()
