"""``ReferenceBackend`` and ``ReferenceExecutable``: a program interpreted, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from octavo.backends.base import (
    Backend,
    ChoiceBatch,
    Choices,
    CompileOptions,
    Executable,
    Float32Array,
    Int32Array,
    StepInput,
    UInt8Array,
)
from octavo.backends.reference import operations as compute
from octavo.backends.reference.check import check_choices, check_step
from octavo.backends.reference.choice import choose
from octavo.backends.reference.kv import DTYPES, KVStorage, block_bytes
from octavo.program import (
    Add,
    Embedding,
    Linear,
    Op,
    PagedAttention,
    Program,
    RMSNorm,
    Rope,
    Rows,
    SelectRows,
    SiluMul,
    Value,
)
from octavo.weights import dequantize
from octavo.weights.tensor import Tensor

_Read = Callable[[Value], Float32Array]


class ReferenceBackend(Backend):
    name = "reference"

    def compile(self, program: Program, tensors: Mapping[str, Tensor], options: CompileOptions) -> ReferenceExecutable:
        return ReferenceExecutable(program, tensors, options)


class ReferenceExecutable(Executable):
    def __init__(self, program: Program, tensors: Mapping[str, Tensor], options: CompileOptions) -> None:
        _check_options(program, options)
        self.program = program
        self.options = options
        self._weights = {name: _load(name, shape, tensors, options.dequantize) for name, shape in program.weights.items()}
        tables: dict[tuple[tuple[float, ...], float], tuple[Float32Array, Float32Array]] = {}
        self._ropes: dict[Rope, tuple[Float32Array, Float32Array]] = {}
        for op in program.ops:
            if isinstance(op, Rope):
                key = (op.inv_freq, op.attention_factor)
                if key not in tables:
                    tables[key] = compute.rope_table(op, options.max_model_len)
                self._ropes[op] = tables[key]
        self._vocab_size = min((program.weights[op.weight][0] for op in program.ops if isinstance(op, Embedding)), default=0)
        self.allocate_kv(0)

    @property
    def kv_block_bytes(self) -> int:
        return block_bytes(self.program.kv, self.options.block_size, self.options.kv_dtype)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.data.nbytes for weight in self._weights.values())

    @property
    def isa(self) -> str:
        return "numpy"

    def allocate_kv(self, num_blocks: int, *, fill_nan: bool = False) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_blocks={num_blocks} is invalid: must not be negative")
        self._kv = KVStorage(self.program.kv, self.options.block_size, self.options.kv_dtype, num_blocks, fill_nan=fill_nan)

    def run(self, step: StepInput) -> Float32Array:
        check_step(step, self.options, self._vocab_size, self._kv.num_blocks)
        num_rows = {Rows.TOKENS: len(step.token_ids), Rows.LOGITS: len(step.logits_rows)}
        buffers = [np.full((num_rows[spec.rows], spec.width), np.nan, np.float32) for spec in self.program.buffers]

        def read(value: Value) -> Float32Array:
            return np.ascontiguousarray(buffers[value.buffer][:, value.offset : value.offset + value.width])

        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # a NaN is its own row's error
            for op in self.program.ops:
                buffers[op.out.buffer][:, op.out.offset : op.out.offset + op.out.width] = self._compute(op, step, read)
            return read(self.program.logits)

    def _compute(self, op: Op, step: StepInput, read: _Read) -> Float32Array:
        match op:
            case Embedding():
                return self._weights[op.weight].data[step.token_ids]
            case RMSNorm():
                return compute.rms_norm(read(op.x), self._weights[op.weight].data, op.eps)
            case Linear():
                x = read(op.x)
                biases = op.biases or (None,) * len(op.weights)
                parts = [
                    compute.linear(x, self._weights[weight], None if bias is None else self._weights[bias].data)
                    for weight, bias in zip(op.weights, biases, strict=True)
                ]
                return np.concatenate(parts, axis=1)
            case Rope():
                cos, sin = self._ropes[op]
                return compute.rope(read(op.x), cos[step.positions], sin[step.positions], op)
            case PagedAttention():
                return self._attend(op, step, read(op.q), read(op.k), read(op.v))
            case SiluMul():
                return compute.silu_mul(read(op.gate), read(op.up))
            case Add():
                return read(op.x) + read(op.y)
            case SelectRows():
                return read(op.x)[step.logits_rows]

    def _attend(self, op: PagedAttention, step: StepInput, q: Float32Array, k: Float32Array, v: Float32Array) -> Float32Array:
        heads = (len(k), op.num_kv_heads, op.head_dim)
        self._kv.write(op.layer, step.slot_mapping, k.reshape(heads), v.reshape(heads))
        out = np.empty(q.shape, np.float32)
        for s, table in enumerate(step.block_tables):
            rows = slice(step.query_start_loc[s], step.query_start_loc[s + 1])
            out[rows] = compute.attention(op, self._kv, q[rows], table, step.positions[rows])
        return out

    def choose(self, logits: Float32Array, batch: ChoiceBatch) -> Choices:
        check_choices(logits, batch)
        with np.errstate(invalid="ignore"):
            return choose(logits, batch)

    def copy_blocks(self, pairs: Int32Array) -> None:
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must be (n, 2) source and destination blocks, not {pairs.shape}")
        for i, side in np.argwhere((pairs < 0) | (pairs >= self._kv.num_blocks)).tolist():
            raise ValueError(f"pairs[{i}, {side}] = {pairs[i, side]} is invalid: must be in [0, {self._kv.num_blocks})")
        for source, destination in pairs.tolist():
            self._kv.copy(source, destination)

    def read_block(self, block: int) -> UInt8Array:
        self._check_block(block)
        return self._kv.read_block(block)

    def write_block(self, block: int, data: UInt8Array) -> None:
        self._check_block(block)
        if data.dtype != np.uint8 or data.shape != (self.kv_block_bytes,):
            raise ValueError(f"data must be {self.kv_block_bytes} bytes of uint8, not {data.shape} of {data.dtype}")
        self._kv.write_block(block, data)

    def _check_block(self, block: int) -> None:
        if not 0 <= block < self._kv.num_blocks:
            raise ValueError(f"block={block} is invalid: must be in [0, {self._kv.num_blocks})")


def _check_options(program: Program, options: CompileOptions) -> None:
    for name in ("block_size", "max_tokens", "max_logits_rows", "max_model_len", "num_threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)} is invalid: must be at least 1")
    if options.kv_dtype not in DTYPES:
        raise ValueError(f"kv_dtype={options.kv_dtype!r} is invalid: choose one of {', '.join(DTYPES)}")
    if options.max_model_len > program.max_model_len:
        raise ValueError(f"max_model_len={options.max_model_len} is invalid: {program.name} was written for {program.max_model_len}")


def _load(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], expand: bool) -> compute.Weight:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"tensor {name!r} is missing")
    if tensor.shape != shape:
        raise ValueError(f"tensor {name!r} has shape {tensor.shape}, but the program reads {shape}")
    return compute.Weight(dequantize(tensor), integer=tensor.type in compute.INTEGER_TYPES and not expand)
