"""``NativeBackend`` and ``NativeExecutable``: packs the weights, places the operands, hands the instructions to C++.

Everything of a step happens in ``octavo._native`` in one call that holds no Python lock: the check of its arrays (before
anything is touched), the instructions, the thread pool. Nothing is allocated there once a program is compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import numpy as np

from octavo import _native
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
from octavo.backends.native.arena import Arena, float_place, quantised_parts
from octavo.backends.native.formats import log_packing
from octavo.backends.native.instructions import (
    AddI,
    AttentionI,
    EmbeddingI,
    Instruction,
    LinearI,
    Quantised,
    QuantizeI,
    RMSNormI,
    RopeI,
    SelectRowsI,
    SiluMulI,
    WriteKVI,
)
from octavo.backends.native.lower import lower
from octavo.backends.native.packed_cache import PackedCache, Region
from octavo.backends.native.packed_layout import PackedLayout, plan_layout, source_type
from octavo.backends.native.records import LastBatch, LastStep, native_choices, native_step, nothing_asked
from octavo.backends.native.select_early import select_early
from octavo.backends.native.windows import find_windows
from octavo.config import KVDType
from octavo.program import Embedding, Program, Rope, RopeStyle, Rows, Value
from octavo.weights import dequantize
from octavo.weights.tensor import ComputedTensor, Tensor

ISA_VARIABLE = "OCTAVO_ISA"
"""Environment variable that chooses an ISA family other than the machine's best (to reproduce another machine's bits)."""

RELEASE_FROM_BYTES = 256 << 20
"""Models whose pages in the file's map are given back while they are packed; smaller ones stay in the system's page cache."""


class NativeBackend(Backend):
    """``packed_cache``: where the packed weights of the model to be compiled are kept; without it they are packed each time.

    ``originals``: what computed tensors are made from, by the same names; their pages are let go of as those of others are.
    """

    name = "native"

    def __init__(self, packed_cache: PackedCache | None = None, originals: Mapping[str, Tensor] | None = None) -> None:
        self._packed_cache = packed_cache
        self._originals = originals

    def compile(self, program: Program, tensors: Mapping[str, Tensor], options: CompileOptions) -> NativeExecutable:
        """Also raises ``RuntimeError`` if this CPU has none of the ISA families that there are kernels for."""
        return NativeExecutable(program, tensors, options, self._packed_cache, self._originals)


class NativeExecutable(Executable):
    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        options: CompileOptions,
        packed_cache: PackedCache | None = None,
        originals: Mapping[str, Tensor] | None = None,
    ) -> None:
        _check_options(program, options)
        self.program = program
        self.options = options
        self._native = _native.Executor(
            isa=os.environ.get(ISA_VARIABLE, ""),
            num_threads=options.num_threads,
            kv_type=getattr(_native.KvType, options.kv_dtype.upper()),
            max_tokens=options.max_tokens,
            max_logits_rows=options.max_logits_rows,
            max_model_len=options.max_model_len,
            num_layers=program.kv.num_layers,
            num_kv_heads=program.kv.num_kv_heads,
            head_dim=program.kv.head_dim,
        )
        try:
            _Emitter(program, tensors, options, self._native, packed_cache, originals or tensors).emit_all()
        except BaseException:
            self._native.close()
            raise
        self._last_step: LastStep | None = None
        self._last_batch: LastBatch | None = None
        self._isa = str(self._native.isa)
        self._kv_block_bytes = int(self._native.block_bytes)
        self._weight_bytes = int(self._native.weight_bytes)

    @property
    def kv_block_bytes(self) -> int:
        return self._kv_block_bytes

    @property
    def weight_bytes(self) -> int:
        return self._weight_bytes

    @property
    def isa(self) -> str:
        return self._isa

    def allocate_kv(self, num_blocks: int, *, fill_nan: bool = False) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_blocks={num_blocks} is invalid: must not be negative")
        self._native.allocate_kv(num_blocks, fill_nan)

    def run(self, step: StepInput) -> Float32Array:
        """A view of native memory: rows are contiguous, but not each after the other."""
        if self._last_step is None or self._last_step.step is not step:
            self._last_step = None
            native = native_step(step)
            self._native.run(native)
            self._last_step = LastStep(step, native, self._native.logits(native))
        else:
            self._native.run(self._last_step.native)
        return self._last_step.logits

    def choose(self, logits: Float32Array, batch: ChoiceBatch) -> Choices:
        if self._last_batch is None or self._last_batch.batch is not batch:
            self._last_batch = LastBatch(batch, native_choices(batch), nothing_asked(len(batch.rows)))
        try:
            token_ids, *asked = self._native.choose(logits, self._last_batch.native)
        except TypeError:
            raise ValueError(f"logits must be a float32 array with 2 dimensions, not {logits.dtype} with {logits.ndim}") from None
        return Choices(token_ids, *(asked or self._last_batch.nothing_asked))

    def copy_blocks(self, pairs: Int32Array) -> None:
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must be (n, 2) source and destination blocks, not {pairs.shape}")
        self._native.copy_blocks(np.ascontiguousarray(pairs, np.int32))

    def read_block(self, block: int) -> UInt8Array:
        data: UInt8Array = self._native.read_block(block)
        return data

    def write_block(self, block: int, data: UInt8Array) -> None:
        if data.dtype != np.uint8 or data.shape != (self.kv_block_bytes,):
            raise ValueError(f"data must be {self.kv_block_bytes} bytes of uint8, not {data.shape} of {data.dtype}")
        self._native.write_block(block, np.ascontiguousarray(data))

    def set_profiling(self, enabled: bool) -> None:
        """Costs two looks at the clock for each instruction."""
        self._native.set_profiling(enabled)

    def set_prefix_sharing(self, enabled: bool) -> None:
        """Off: attention reads blocks that sequences share once for each of them. The same logits, to compare with."""
        self._native.set_prefix_sharing(enabled)

    def profile(self) -> dict[str, float]:
        """Seconds spent per kind of instruction, and in choosing tokens."""
        seconds: dict[str, float] = self._native.profile()
        return seconds

    def close(self) -> None:
        self._last_step = self._last_batch = None
        self._native.close()


def _check_options(program: Program, options: CompileOptions) -> None:
    for name in ("max_tokens", "max_logits_rows", "max_model_len", "num_threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}={getattr(options, name)} is invalid: must be at least 1")
    if options.block_size != _native.BLOCK_SIZE:
        raise ValueError(f"block_size={options.block_size} is invalid: the native kernels are built for {_native.BLOCK_SIZE}")
    if options.kv_dtype not in get_args(KVDType):
        raise ValueError(f"kv_dtype={options.kv_dtype!r} is invalid: choose one of {', '.join(get_args(KVDType))}")
    if options.max_model_len > program.max_model_len:
        raise ValueError(f"max_model_len={options.max_model_len} is invalid: {program.name} was written for {program.max_model_len}")


class _Emitter:
    """Adds weights and tables as they are first needed, and emits the instructions with their operands' places."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        options: CompileOptions,
        native: Any,
        packed_cache: PackedCache | None,
        originals: Mapping[str, Tensor],
    ) -> None:
        program = select_early(program)
        self._program = program
        self._tensors = tensors
        self._dequantize = options.dequantize
        self._native = native
        self._cache = packed_cache
        self._originals = originals
        self._max_rows = {Rows.TOKENS: options.max_tokens, Rows.LOGITS: min(options.max_logits_rows, options.max_tokens)}
        for name in program.weights:
            self._tensor(name)
        self._instructions = lower(program, self._is_integer)
        self._windows = find_windows(program, self._instructions, self._max_rows)
        self._arena = Arena(program, self._instructions, self._max_rows, self._windows)
        self._matrices: dict[str, int] = {}
        self._vectors: dict[str, int] = {}
        self._tables: dict[tuple[tuple[float, ...], float, RopeStyle], int] = {}

    def emit_all(self) -> None:
        self._load_matrices(plan_layout(self._program, self._tensors, self._dequantize))
        for instruction in self._instructions:
            self._emit(instruction)
        vocab_size = min((self._program.weights[op.weight][0] for op in self._program.ops if isinstance(op, Embedding)), default=0)
        self._native.finish(self._arena.num_bytes, self._slice(self._program.logits), vocab_size)

    def _tensor(self, name: str) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ValueError(f"tensor {name!r} is missing")
        if tensor.shape != self._program.weights[name]:
            raise ValueError(f"tensor {name!r} has shape {tensor.shape}, but the program reads {self._program.weights[name]}")
        return tensor

    def _is_integer(self, name: str) -> bool:
        return not self._dequantize and bool(_native.is_quantised(source_type(self._tensor(name).type)))

    def _load_matrices(self, layout: PackedLayout) -> None:
        """From the cache, or packed here and left to it."""
        log_packing(layout)
        cache = self._cache
        region = cache.open(layout) if cache is not None else None
        if region is not None:
            self._add_matrices(layout, region)
            return
        region = cache.begin(layout) if cache is not None else Region.anonymous(layout)
        try:
            self._add_matrices(layout, region)
            self._pack_matrices(layout)
        except BaseException:
            if cache is not None:
                cache.abandon()
            raise
        region.memory.protect()
        if cache is not None:
            cache.finish(layout, region)

    def _add_matrices(self, layout: PackedLayout, region: Region) -> None:
        for place in layout.places:
            source = source_type(self._tensor(place.name).type)
            offset = region.base + place.offset
            self._matrices[place.name] = int(self._native.add_matrix(region.memory, offset, source, self._dequantize, place.n, place.k))

    def _pack_matrices(self, layout: PackedLayout) -> None:
        """One at a time; of a large model, what has been packed is let go of before the next is read."""
        for place in layout.places:
            tensor = self._tensor(place.name)
            data = np.ascontiguousarray(tensor.data)
            try:
                self._native.pack_matrix(self._matrices[place.name], source_type(tensor.type), data)
            except ValueError as error:
                raise ValueError(f"tensor {place.name!r}: {error}") from None
            del data
            original = self._originals.get(place.name)
            if layout.num_bytes >= RELEASE_FROM_BYTES and original is not None and not isinstance(original, ComputedTensor):
                _native.release_pages(original.data)

    def _vector(self, name: str) -> int:
        if name not in self._vectors:
            values = np.ascontiguousarray(dequantize(self._tensor(name)), np.float32).reshape(-1)
            self._vectors[name] = int(self._native.add_vector(values))
        return self._vectors[name]

    def _table(self, rope: Rope | None) -> int:
        if rope is None:
            return -1
        key = (rope.inv_freq, rope.attention_factor, rope.style)
        if key not in self._tables:
            style = getattr(_native.RopeStyle, rope.style.name)
            self._tables[key] = int(self._native.add_rope_table(np.array(rope.inv_freq, np.float64), rope.attention_factor, style))
        return self._tables[key]

    def _slice(self, value: Value) -> Any:
        return _native.Slice(*float_place(self._arena, value, self._program), value.width, value.rows is Rows.LOGITS)

    def _quantised(self, operand: Quantised) -> Any:
        value = operand.value
        return _native.QuantisedSlice(
            *quantised_parts(self._arena, operand, self._max_rows[value.rows]), value.width, value.rows is Rows.LOGITS
        )

    def _emit(self, instruction: Instruction) -> None:
        native = self._native
        place = self._slice
        place_or_none = partial(_maybe, self._slice)
        quantised_or_none = partial(_maybe, self._quantised)
        match instruction:
            case EmbeddingI(weight=weight, out=out):
                native.emit_embedding(self._matrices[weight], place(out))
            case RMSNormI(x=x, weight=weight, eps=eps, out=maybe_out, quantised=quantised):
                native.emit_rms_norm(place(x), self._vector(weight), eps, place_or_none(maybe_out), quantised_or_none(quantised))
            case QuantizeI(x=x, out=quantised):
                native.emit_quantize(place(x), self._quantised(quantised))
            case LinearI(x=maybe_x, quantised=quantised, parts=parts, residual=residual, out=out):
                handles = [(self._matrices[w], -1 if bias is None else self._vector(bias)) for w, bias in parts]
                window = self._windows.get(out.buffer, 0)
                native.emit_linear(
                    place_or_none(maybe_x), quantised_or_none(quantised), handles, place_or_none(residual), place(out), window
                )
            case RopeI(x=x, rope=rope, out=out):
                native.emit_rope(place(x), self._table(rope), rope.head_dim, place(out))
            case WriteKVI(k=k, v=v, rope=maybe_rope, layer=layer):
                native.emit_write_kv(place(k), place(v), self._table(maybe_rope), layer)
            case AttentionI(q=q, rope=maybe_rope, layer=layer, num_heads=num_heads, scale=scale, out=out):
                native.emit_attention(place(q), self._table(maybe_rope), layer, num_heads, scale, place(out))
            case SiluMulI(gate=gate, up=up, out=maybe_out, quantised=quantised):
                native.emit_silu_mul(place(gate), place(up), place_or_none(maybe_out), quantised_or_none(quantised))
            case AddI(x=x, y=y, out=out):
                native.emit_add(place(x), place(y), place(out))
            case SelectRowsI(x=x, out=out):
                native.emit_select_rows(place(x), place(out))


def _maybe(convert: Callable[[Any], Any], operand: Any) -> Any:
    return None if operand is None else convert(operand)
