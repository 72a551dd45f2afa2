"""A ``Program``: what a model computes in one step, written down once and run by any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.program.ops import Op, Rows, Value, inputs_of


@dataclass(frozen=True, slots=True)
class KVSpec:
    """What the KV cache of a program holds per token: K and V of each layer and KV head, ``head_dim`` wide."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def elements_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class BufferSpec:
    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Program:
    """Operations in order, the buffers they write, the weights they read (name → shape), the cache they need.

    ``logits`` is the result: (number of logits rows, vocab_size).
    """

    name: str
    ops: tuple[Op, ...]
    buffers: tuple[BufferSpec, ...]
    weights: Mapping[str, tuple[int, ...]]
    kv: KVSpec
    logits: Value
    max_model_len: int

    @property
    def vocab_size(self) -> int:
        return self.logits.width

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.ops)} operations, {len(self.weights)} weights, {self.kv}"]
        for op in self.ops:
            reads = ", ".join(_show(v) for v in inputs_of(op))
            rest = {k: getattr(op, k) for k in op.__slots__ if not isinstance(getattr(op, k), Value) and k != "inv_freq"}
            detail = ", ".join(f"{k}={v}" for k, v in rest.items() if v not in ((), None))
            lines.append(f"  {_show(op.out):>24} = {type(op).__name__}({reads}{', ' if reads and detail else ''}{detail})")
        return "\n".join(lines)


def _show(value: Value) -> str:
    return f"%{value.buffer}[{value.offset}:{value.offset + value.width}]{'ᴸ' if value.rows is Rows.LOGITS else ''}"
