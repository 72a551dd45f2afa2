"""``ProgramBuilder``: what a model file writes its program with. It checks every shape as it goes.

    b = ProgramBuilder("llama", max_model_len=8192)
    x = b.embedding("token_embd.weight", vocab_size, hidden_size)
    q, k, v = b.split(b.linear(h, {"blk.0.attn_q.weight": 576, …}), [576, 192, 192])

A shape that does not fit raises ``ValueError`` naming the operation and the widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.program import ops
from octavo.program.ops import Op, RopeStyle, Rows, Value
from octavo.program.program import BufferSpec, KVSpec, Program


class ProgramBuilder:
    def __init__(self, name: str, max_model_len: int) -> None:
        self._name = name
        self._max_model_len = max_model_len
        self._ops: list[Op] = []
        self._buffers: list[BufferSpec] = []
        self._weights: dict[str, tuple[int, ...]] = {}
        self._kv: KVSpec | None = None
        self._layers: set[int] = set()

    def embedding(self, weight: str, vocab_size: int, width: int) -> Value:
        out = self._new(Rows.TOKENS, width)
        self._ops.append(ops.Embedding(out, self._weight(weight, (vocab_size, width))))
        return out

    def rms_norm(self, x: Value, weight: str, eps: float) -> Value:
        out = self._new(x.rows, x.width)
        self._ops.append(ops.RMSNorm(out, x, self._weight(weight, (x.width,)), eps))
        return out

    def linear(self, x: Value, weights: Mapping[str, int], biases: Sequence[str | None] = ()) -> Value:
        """One projection per weight (name → output width), side by side in one value."""
        if biases and len(biases) != len(weights):
            raise ValueError(f"linear: {len(weights)} weights but {len(biases)} biases")
        for name, width in weights.items():
            self._weight(name, (width, x.width))
        for bias, width in zip(biases, weights.values(), strict=False):
            if bias is not None:
                self._weight(bias, (width,))
        out = self._new(x.rows, sum(weights.values()))
        self._ops.append(ops.Linear(out, x, tuple(weights), tuple(biases)))
        return out

    def split(self, x: Value, widths: Sequence[int]) -> list[Value]:
        """Views of neighbouring columns; copies nothing."""
        if sum(widths) != x.width:
            raise ValueError(f"split: widths {list(widths)} do not add up to {x.width}")
        offsets = [sum(widths[:i]) for i in range(len(widths))]
        return [x.columns(offset, width) for offset, width in zip(offsets, widths, strict=True)]

    def rope(self, x: Value, *, head_dim: int, style: RopeStyle, inv_freq: Sequence[float], attention_factor: float = 1.0) -> Value:
        rotary_dim = 2 * len(inv_freq)
        if x.width % head_dim or not 0 < rotary_dim <= head_dim:
            raise ValueError(f"rope: width {x.width} and rotary_dim {rotary_dim} do not fit heads of {head_dim}")
        out = self._new(x.rows, x.width)
        self._ops.append(ops.Rope(out, x, head_dim, rotary_dim, style, tuple(inv_freq), attention_factor))
        return out

    def paged_attention(
        self, q: Value, k: Value, v: Value, *, layer: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float | None = None
    ) -> Value:
        if num_heads % num_kv_heads:
            raise ValueError(f"paged_attention: {num_heads} heads are not a multiple of {num_kv_heads} KV heads")
        if q.width != num_heads * head_dim or k.width != num_kv_heads * head_dim or v.width != k.width:
            raise ValueError(
                f"paged_attention: widths q {q.width}, k {k.width}, v {v.width} do not fit {num_heads}/{num_kv_heads} heads of {head_dim}"
            )
        if layer in self._layers:
            raise ValueError(f"paged_attention: layer {layer} is written twice")
        self._layers.add(layer)
        spec = KVSpec(len(self._layers), num_kv_heads, head_dim)
        if self._kv is not None and (self._kv.num_kv_heads, self._kv.head_dim) != (num_kv_heads, head_dim):
            raise ValueError(f"paged_attention: layer {layer} needs {spec}, earlier layers {self._kv}")
        self._kv = spec
        out = self._new(Rows.TOKENS, q.width)
        self._ops.append(
            ops.PagedAttention(out, q, k, v, layer, num_heads, num_kv_heads, head_dim, scale if scale is not None else head_dim**-0.5)
        )
        return out

    def silu_mul(self, gate: Value, up: Value) -> Value:
        self._same("silu_mul", gate, up)
        out = self._new(gate.rows, gate.width)
        self._ops.append(ops.SiluMul(out, gate, up))
        return out

    def add(self, x: Value, y: Value) -> Value:
        self._same("add", x, y)
        out = self._new(x.rows, x.width)
        self._ops.append(ops.Add(out, x, y))
        return out

    def select_rows(self, x: Value) -> Value:
        if x.rows is not Rows.TOKENS:
            raise ValueError("select_rows: its input must have a row per token")
        out = self._new(Rows.LOGITS, x.width)
        self._ops.append(ops.SelectRows(out, x))
        return out

    def build(self, logits: Value) -> Program:
        if logits.rows is not Rows.LOGITS:
            raise ValueError("build: logits must have a row per logits row (use select_rows)")
        if self._kv is None or self._layers != set(range(self._kv.num_layers)):
            raise ValueError(f"build: attention layers must be numbered 0, 1, 2, …; got {sorted(self._layers)}")
        return Program(self._name, tuple(self._ops), tuple(self._buffers), dict(self._weights), self._kv, logits, self._max_model_len)

    def _new(self, rows: Rows, width: int) -> Value:
        if width <= 0:
            raise ValueError(f"a value's width must be positive, not {width}")
        self._buffers.append(BufferSpec(rows, width))
        return Value(len(self._buffers) - 1, rows, 0, width)

    def _weight(self, name: str, shape: tuple[int, ...]) -> str:
        if self._weights.setdefault(name, shape) != shape:
            raise ValueError(f"weight {name!r} is used as {self._weights[name]} and as {shape}")
        return name

    @staticmethod
    def _same(op: str, x: Value, y: Value) -> None:
        if (x.rows, x.width) != (y.rows, y.width):
            raise ValueError(f"{op}: operands differ: {x} and {y}")
