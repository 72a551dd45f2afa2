"""Programs to run: one operation between an embedding and the logits, and whole little Llamas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.backends.base import Backend, CompileOptions, Executable
from octavo.config import KVDType
from octavo.program import Program, ProgramBuilder, RopeStyle, Value
from octavo.weights.tensor import Tensor, TensorType

from .tensors import float_tensor, random_tensor

BLOCK_SIZE = 16


def compile_program(
    backend: Backend,
    program: Program,
    tensors: Mapping[str, Tensor],
    *,
    kv_dtype: KVDType = "fp32",
    max_tokens: int = 256,
    max_logits_rows: int = 256,
    max_model_len: int | None = None,
    num_threads: int = 1,
    dequantize: bool = False,
) -> Executable:
    length = program.max_model_len if max_model_len is None else max_model_len
    return backend.compile(
        program, tensors, CompileOptions(BLOCK_SIZE, kv_dtype, max_tokens, max_logits_rows, length, num_threads, dequantize)
    )


def one_op_program(
    table: npt.NDArray[np.float32], write: Callable[[ProgramBuilder, Value], Value], tensors: Sequence[Tensor] = ()
) -> tuple[Program, dict[str, Tensor]]:
    """Token t enters as row t of ``table``; logits are what ``write`` makes of it. A program needs a cache, so a
    one-head attention that nothing reads runs beside it.
    """
    b = ProgramBuilder("one-op", max_model_len=2048)
    x = b.embedding("table", *table.shape)
    side = b.embedding("side", table.shape[0], 32)
    b.paged_attention(side, side, side, layer=0, num_heads=1, num_kv_heads=1, head_dim=32)
    program = b.build(b.select_rows(write(b, x)))
    given = [float_tensor("table", table), float_tensor("side", np.zeros((len(table), 32))), *tensors]
    return program, {tensor.name: tensor for tensor in given}


def attention_program(
    table: npt.NDArray[np.float32], num_heads: int, num_kv_heads: int, head_dim: int, max_model_len: int = 2048
) -> tuple[Program, dict[str, Tensor]]:
    """Rows of ``table`` hold a token's q, k and v side by side; logits are the attention's output."""
    b = ProgramBuilder("attention", max_model_len)
    x = b.embedding("table", *table.shape)
    q, k, v = b.split(x, [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim])
    a = b.paged_attention(q, k, v, layer=0, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    return b.build(b.select_rows(a)), {"table": float_tensor("table", table)}


@dataclass(frozen=True)
class LittleLlama:
    """A Llama with every dimension to choose; ``linear_types`` are dealt to the projections in turn."""

    vocab_size: int = 96
    hidden: int = 128
    intermediate: int = 160
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int | None = None
    style: RopeStyle = RopeStyle.INTERLEAVED
    linear_types: tuple[TensorType, ...] = (TensorType.F32,)
    embedding_type: TensorType = TensorType.F32
    biases: bool = False
    tied: bool = True
    max_model_len: int = 2048
    seed: int = 0
    attention_factor: float = 1.0
    tensors: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_type(cls, type: TensorType, **dimensions: Any) -> LittleLlama:
        """All matrices of one type, the given dimensions widened to whole blocks of it."""
        length = type.block_length
        widths = {"hidden": 128, "intermediate": 160} | dimensions
        for name in ("hidden", "intermediate"):
            widths[name] = -(-widths[name] // length) * length
        if widths.get("num_heads", 4) * widths.get("head_dim", 64) % length:
            widths |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
        return cls(linear_types=(type,), embedding_type=type, **widths)

    def build(self) -> tuple[Program, dict[str, Tensor]]:
        b = ProgramBuilder("little-llama", self.max_model_len)
        rng = np.random.default_rng(self.seed)
        tensors: dict[str, Tensor] = {}
        dealt = 0

        def norm(x: Value, name: str) -> Value:
            tensors[name] = float_tensor(name, 1 + 0.2 * rng.normal(size=x.width))
            return b.rms_norm(x, name, 1e-5)

        def linear(x: Value, widths: Mapping[str, int]) -> Value:
            nonlocal dealt
            for name, width in widths.items():
                tensors[name] = random_tensor(rng, name, self.linear_types[dealt % len(self.linear_types)], (width, x.width))
                dealt += 1
            biases: list[str | None] = []
            if self.biases:
                for i, (name, width) in enumerate(widths.items()):
                    biases.append(None if i == 1 else f"{name}.bias")
                    if i != 1:
                        tensors[f"{name}.bias"] = float_tensor(f"{name}.bias", rng.normal(0, 0.5, width))
            return b.linear(x, widths, biases)

        def rope(x: Value) -> Value:
            rotary = self.rotary_dim or self.head_dim
            inv_freq = [10000.0 ** (-2 * i / rotary) for i in range(rotary // 2)]
            return b.rope(x, head_dim=self.head_dim, style=self.style, inv_freq=inv_freq, attention_factor=self.attention_factor)

        tensors["embed"] = random_tensor(rng, "embed", self.embedding_type, (self.vocab_size, self.hidden), std=1.0)
        x = b.embedding("embed", self.vocab_size, self.hidden)
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        for i in range(self.num_layers):
            h = norm(x, f"{i}.attn_norm")
            q, k, v = b.split(linear(h, {f"{i}.q": q_width, f"{i}.k": kv_width, f"{i}.v": kv_width}), [q_width, kv_width, kv_width])
            a = b.paged_attention(
                rope(q), rope(k), v, layer=i, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim
            )
            x = b.add(x, linear(a, {f"{i}.o": self.hidden}))
            h = norm(x, f"{i}.ffn_norm")
            gate, up = b.split(linear(h, {f"{i}.gate": self.intermediate, f"{i}.up": self.intermediate}), [self.intermediate] * 2)
            x = b.add(x, linear(b.silu_mul(gate, up), {f"{i}.down": self.hidden}))
        h = norm(b.select_rows(x), "out_norm")
        logits = b.linear(h, {"embed": self.vocab_size}) if self.tied else linear(h, {"head": self.vocab_size})
        return b.build(logits), tensors
