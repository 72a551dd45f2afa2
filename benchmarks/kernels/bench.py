"""Programs of one kernel each, and how long the executor takes for it.

A linear program of few rows multiplies by enough different weights that each comes from memory, as in a model; the KV cache that attention
reads is larger than what caches hold too. Row kernels work on rows that the kernel before them has just written, as in a model. Values are
arbitrary but harmless: neither NaN nor denormal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo import _native
from octavo.backends.base import ChoiceBatch, CompileOptions, StepInput
from octavo.backends.native import NativeBackend
from octavo.backends.native.executable import NativeExecutable
from octavo.config import BLOCK_SIZE, KVDType
from octavo.program import Program, ProgramBuilder, RopeStyle, Value
from octavo.weights.tensor import Tensor, TensorType

VOCAB = 64
"""Rows of the embedding from which all rows come."""
STREAMED_BYTES = 256 << 20
"""So much more than caches hold that what they keep of it from one run to the next does not count."""
MEMORY_BOUND_ROWS = 32
"""With more rows than that, arithmetic takes longest whatever the weights come from: then there are fewer of them."""


@dataclass(frozen=True)
class Shapes:
    """A model's sizes."""

    name: str = "SmolLM2-135M"
    hidden: int = 576
    intermediate: int = 1536
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    vocab: int = 49152

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (outputs, inputs)."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocab, self.hidden),
        }


@dataclass(frozen=True)
class Point:
    """``seconds`` of one call; what it reads from memory and computes. ``arithmetic``: which ceiling its products have."""

    kernel: str
    case: str
    rows: int
    seconds: float
    num_bytes: float
    num_ops: float
    arithmetic: str

    @property
    def gb_s(self) -> float:
        return self.num_bytes / self.seconds / 1e9

    @property
    def gops(self) -> float:
        return self.num_ops / self.seconds / 1e9

    def share(self, ceilings: dict[str, float]) -> float:
        """Of the roofline: the time that reading or computing takes at least, whichever is longer, in that which it took."""
        floor_s = max(self.num_bytes / ceilings["read_gb_s"], self.num_ops / ceilings[self.arithmetic]) / 1e9
        return floor_s / self.seconds


FORMATS = (
    TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.I8_CHANNEL, TensorType.Q6_K, TensorType.Q5_1,
    TensorType.Q5_0, TensorType.Q4_1, TensorType.Q4_0, TensorType.Q5_K, TensorType.Q4_K, TensorType.IQ4_NL, TensorType.IQ4_XS,
    TensorType.Q3_K, TensorType.Q2_K,
)  # fmt: skip
"""A tensor type for each packed format."""


def packed_name(kind: TensorType) -> str:
    name: str = _native.describe_packing(getattr(_native.SourceType, kind.name))[0]
    return name


def random_tensor(name: str, kind: TensorType, shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Random quants with scales (and minima) around 2⁻⁷, or floats of that size."""
    rows, columns = shape
    if kind is TensorType.F32:
        data = (rng.standard_normal(shape, np.float32) / 128).view(np.uint8)
    elif kind is TensorType.F16:
        data = (rng.standard_normal(shape, np.float32) / 128).astype(np.float16).view(np.uint8)
    elif kind is TensorType.BF16:
        data = ((rng.standard_normal(shape, np.float32) / 128).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        blocks = rng.integers(0, 256, (rows, columns // kind.block_length, kind.block_bytes), np.uint8)
        with_minimum = (TensorType.Q5_1, TensorType.Q4_1, TensorType.Q5_K, TensorType.Q4_K, TensorType.Q2_K)
        scales = 2 if kind in with_minimum else 1
        halves = np.full(scales, 2**-7, np.float16).view(np.uint8)
        if kind in (TensorType.Q6_K, TensorType.Q3_K, TensorType.Q2_K):
            blocks[..., -2 * scales :] = halves
        else:
            blocks[..., : 2 * scales] = halves
        data = blocks.reshape(rows, -1)
    return Tensor(name, kind, shape, data)


@dataclass(frozen=True)
class Setting:
    threads: int
    seconds: float
    """How long a point is measured."""


class Bench:
    """A compiled program with rows to run it on."""

    def __init__(
        self,
        setting: Setting,
        build: Callable[[ProgramBuilder], Value],
        tensors: dict[str, Tensor],
        *,
        rows: int,
        width: int,
        max_len: int = 2 * BLOCK_SIZE,
        kv_dtype: KVDType = "fp16",
        logits_rows: int = 1,
    ) -> None:
        self.setting = setting
        builder = ProgramBuilder("bench", max_len)
        program: Program = builder.build(build(builder))
        rng = np.random.default_rng(0)
        tensors = dict(tensors)
        for name, shape in program.weights.items():
            if name not in tensors:
                values = rng.standard_normal(shape, np.float32)
                tensors[name] = Tensor(name, TensorType.F32, shape, values.reshape(shape[0] if len(shape) == 2 else 1, -1).view(np.uint8))
        options = CompileOptions(BLOCK_SIZE, kv_dtype, rows, logits_rows, max_len, setting.threads)
        self.executable: NativeExecutable = NativeBackend().compile(program, tensors, options)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.executable.close()

    def seconds(self, kind: str, run: Callable[[], object]) -> float:
        """The executor's own time for instructions of a kind in one run: the 10th percentile of as many runs as there is time for."""
        times: list[float] = []
        run()
        began = time.perf_counter()
        while len(times) < 5 or time.perf_counter() - began < self.setting.seconds:
            self.executable.set_profiling(True)
            run()
            times.append(self.executable.profile()[kind])
        times.sort()
        return times[len(times) // 10]


def step(num_sequences: int, tokens_each: int, context: int) -> StepInput:
    """``tokens_each`` tokens of each sequence after ``context`` others, every sequence in blocks of its own."""
    total = context + tokens_each
    blocks_each = -(-total // BLOCK_SIZE)
    tables = np.arange(num_sequences * blocks_each, dtype=np.int32).reshape(num_sequences, blocks_each)
    positions = np.tile(np.arange(context, total, dtype=np.int32), num_sequences)
    owner = np.repeat(np.arange(num_sequences), tokens_each)
    slots = tables[owner, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    rows = num_sequences * tokens_each
    return StepInput(
        np.arange(rows, dtype=np.int32) % VOCAB,
        positions,
        np.arange(0, rows + 1, tokens_each, dtype=np.int32),
        np.full(num_sequences, total, np.int32),
        tables,
        slots,
        np.array([rows - 1], np.int32),
    )


def _finish(builder: ProgramBuilder, x: Value, head_dim: int = 64) -> Value:
    """A program needs one layer of attention, and logits; both as small as they come."""
    q = x.columns(0, head_dim)
    builder.paged_attention(q, q, q, layer=0, num_heads=1, num_kv_heads=1, head_dim=head_dim)
    return builder.select_rows(x)


def linear_points(setting: Setting, shapes: Shapes, kind: TensorType, name: str, row_counts: list[int]) -> Iterator[Point]:
    """``y = x Wᵀ``; each row of K formats is rounded up to whole blocks."""
    few, many = ([rows for rows in row_counts if (rows <= MEMORY_BOUND_ROWS) is wanted] for wanted in (True, False))
    for counts, num_bytes in ((few, STREAMED_BYTES), (many, STREAMED_BYTES // 4)):
        if counts:
            yield from _linear_points(setting, shapes, kind, name, counts, num_bytes)


def _linear_points(setting: Setting, shapes: Shapes, kind: TensorType, name: str, row_counts: list[int], num_bytes: int) -> Iterator[Point]:
    """With as many copies of the weights as take that many bytes."""
    outputs, inputs = shapes.linears[name]
    inputs = -(-inputs // kind.block_length) * kind.block_length
    packed, bits = _native.describe_packing(getattr(_native.SourceType, kind.name))
    one = outputs * inputs * bits / 8
    copies = max(1, min(1000, round(num_bytes / one)))
    tensor = random_tensor("w", kind, (outputs, inputs), np.random.default_rng(1))
    names = [f"w{i}" for i in range(copies)]

    def build(builder: ProgramBuilder) -> Value:
        x = builder.embedding("embedding", VOCAB, inputs)
        for weight in names:
            builder.linear(x, {weight: outputs})
        return _finish(builder, x)

    tensors = {weight: Tensor(weight, kind, tensor.shape, tensor.data) for weight in names}
    with Bench(setting, build, tensors, rows=max(row_counts), width=inputs, max_len=max(row_counts) + BLOCK_SIZE) as bench:
        bench.executable.allocate_kv(-(-max(row_counts) // BLOCK_SIZE) + 1)
        for rows in row_counts:
            work = step(1, rows, 0)
            seconds = bench.seconds("linear", lambda work=work: bench.executable.run(work)) / copies  # type: ignore[misc]
            arithmetic = "float_gflops" if kind.is_float else "int8_gops"
            yield Point("linear", f"{packed} {name}", rows, seconds, one, 2.0 * rows * outputs * inputs, arithmetic)


def attention_point(setting: Setting, shapes: Shapes, dtype: KVDType, sequences: int, tokens: int, context: int) -> Point:
    """``tokens`` of each sequence after ``context`` others; several layers, so that the cache is larger than what caches hold."""
    executable: NativeExecutable
    layer_bytes = sequences * (context + tokens) * 2 * shapes.kv_heads * shapes.head_dim * {"fp32": 4, "fp16": 2, "int8": 1}[dtype]
    layers = max(1, min(30, round(STREAMED_BYTES / layer_bytes)))
    widths = [shapes.heads * shapes.head_dim] + [shapes.kv_heads * shapes.head_dim] * 2
    frequencies = tuple(10000.0 ** (-2 * i / shapes.head_dim) for i in range(shapes.head_dim // 2))

    def build(builder: ProgramBuilder) -> Value:
        x = builder.embedding("embedding", VOCAB, sum(widths))
        for layer in range(layers):
            q, k, v = builder.split(x, widths)
            q, k = (builder.rope(y, head_dim=shapes.head_dim, style=RopeStyle.INTERLEAVED, inv_freq=frequencies) for y in (q, k))
            builder.paged_attention(q, k, v, layer=layer, num_heads=shapes.heads, num_kv_heads=shapes.kv_heads, head_dim=shapes.head_dim)
        return builder.select_rows(x)

    total = context + tokens
    with Bench(setting, build, {}, rows=sequences * tokens, width=sum(widths), max_len=total + BLOCK_SIZE, kv_dtype=dtype) as bench:
        executable = bench.executable
        num_blocks = sequences * -(-total // BLOCK_SIZE)
        executable.allocate_kv(num_blocks)
        block = np.full(executable.kv_block_bytes, 0x3F, np.uint8)  # a moderate number in every type
        for index in range(num_blocks):
            executable.write_block(index, block)
        work = step(sequences, tokens, context)
        seconds = bench.seconds("attention", lambda: executable.run(work)) / layers
        token_bytes = executable.kv_block_bytes / BLOCK_SIZE / layers
    keys = sum(range(context + 1, total + 1)) * sequences
    case = f"{dtype} {'decode' if tokens == 1 else 'prefill'}, {sequences} × context {context + 1 if tokens == 1 else context}"
    return Point(
        "attention",
        case,
        sequences * tokens,
        seconds,
        sequences * total * token_bytes,
        4.0 * keys * shapes.heads * shapes.head_dim,
        "float_gflops",
    )


def row_points(setting: Setting, shapes: Shapes, row_counts: list[int]) -> Iterator[Point]:
    """Norm, activation, rotation and quantisation, one after the other on rows that lie in caches if there are few of them."""
    copies, wide = 30, shapes.intermediate
    frequencies = tuple(10000.0 ** (-2 * i / shapes.head_dim) for i in range(shapes.head_dim // 2))

    def norm(builder: ProgramBuilder) -> Value:
        x = builder.embedding("embedding", VOCAB, shapes.hidden)
        for _ in range(copies):
            x = builder.rms_norm(x, "norm", 1e-5)
        return _finish(builder, x)

    def silu(builder: ProgramBuilder) -> Value:
        gate, up = builder.split(builder.embedding("embedding", VOCAB, 2 * wide), [wide, wide])
        for _ in range(copies):
            gate = builder.silu_mul(gate, up)
        return _finish(builder, gate)

    def rope(builder: ProgramBuilder) -> Value:
        x = builder.embedding("embedding", VOCAB, shapes.hidden)
        for _ in range(copies):
            x = builder.rope(x, head_dim=shapes.head_dim, style=RopeStyle.INTERLEAVED, inv_freq=frequencies)
        return _finish(builder, x)

    kernels = (
        ("rms_norm", norm, shapes.hidden, 8, 4),
        ("silu_mul", silu, 2 * wide, 6, 4),
        ("rope", rope, shapes.hidden, 8, 3),
    )
    for name, build, width, element_bytes, element_ops in kernels:
        longest = max(row_counts)
        with Bench(setting, build, {}, rows=longest, width=width, max_len=longest + BLOCK_SIZE) as bench:
            bench.executable.allocate_kv(-(-longest // BLOCK_SIZE) + 1)
            for rows in row_counts:
                work = step(1, rows, 0)
                seconds = bench.seconds(name, lambda work=work: bench.executable.run(work)) / copies  # type: ignore[misc]
                elements = float(rows * width)
                yield Point(name, f"width {width}", rows, seconds, element_bytes * elements, element_ops * elements, "float_gflops")


CHOICES = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (1.0, 0, 1.0, 0.0),
    "top_k 40": (1.0, 40, 1.0, 0.0),
    "top_p 0.9": (1.0, 0, 0.9, 0.0),
    "min_p 0.05": (1.0, 0, 1.0, 0.05),
}
"""Temperature, top_k, top_p, min_p."""


def choice_points(setting: Setting, shapes: Shapes, row_counts: list[int]) -> Iterator[Point]:
    """Token choice over rows of logits that look like a model's."""

    def build(builder: ProgramBuilder) -> Value:
        return _finish(builder, builder.embedding("embedding", VOCAB, 64))

    logits = (4 * np.random.default_rng(2).standard_normal((max(row_counts), shapes.vocab))).astype(np.float32)
    with Bench(setting, build, {}, rows=1, width=64) as bench:
        for name, (temperature, top_k, top_p, min_p) in CHOICES.items():
            for rows in row_counts:
                batch = _choices(rows, temperature, top_k, top_p, min_p)
                seconds = bench.seconds("choose", lambda batch=batch: bench.executable.choose(logits, batch))  # type: ignore[misc]
                values = float(rows * shapes.vocab)
                yield Point("choose", name, rows, seconds, 4 * values, values, "float_gflops")


def _choices(rows: int, temperature: float, top_k: int, top_p: float, min_p: float) -> ChoiceBatch:
    def full(value: float, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        return np.full(rows, value, dtype)

    indices = np.arange(rows)
    return ChoiceBatch(
        rows=indices.astype(np.int32),
        temperature=full(temperature, np.float32),  # type: ignore[arg-type]
        top_k=full(top_k, np.int32),  # type: ignore[arg-type]
        top_p=full(top_p, np.float32),  # type: ignore[arg-type]
        min_p=full(min_p, np.float32),  # type: ignore[arg-type]
        seed=indices.astype(np.uint64),
        branch=np.zeros(rows, np.uint32),
        position=np.zeros(rows, np.uint32),
        num_logprobs=np.full(rows, -1, np.int32),
    )
