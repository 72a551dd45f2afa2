"""Program → instructions: each operation becomes one instruction, after a few local fusions.

- RMSNorm and SiLU-mul write the int8 form of their result where integer weights read it, and the float form only
  where somebody reads that; other values are quantised just before their first such reader, once.
- An Add that takes a projection's only use becomes the projection's residual.
- A rotation that only attention reads is done there: K on its way into the cache, Q on its way into a tile.

None of them changes a bit of any result.
"""

from __future__ import annotations

from collections.abc import Callable

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
from octavo.program import Add, Embedding, Linear, Op, PagedAttention, Program, RMSNorm, Rope, SelectRows, SiluMul, Value, inputs_of


def lower(program: Program, is_integer: Callable[[str], bool]) -> list[Instruction]:
    """``is_integer(name)``: whether a matrix is packed in an integer format."""
    return _Lowering(program, is_integer).instructions


class _Lowering:
    def __init__(self, program: Program, is_integer: Callable[[str], bool]) -> None:
        self._ops = program.ops
        self._is_integer = is_integer
        self._producer: dict[int, int] = {op.out.buffer: i for i, op in enumerate(self._ops)}
        self._reads: dict[int, list[tuple[Op | None, Value]]] = {}
        for op in self._ops:
            for value in inputs_of(op):
                self._reads.setdefault(value.buffer, []).append((op, value))
        self._reads.setdefault(program.logits.buffer, []).append((None, program.logits))
        self._read_as_integers = {op.x for op in self._ops if isinstance(op, Linear) and self._integer_parts(op)}
        self._absorbed: set[int] = set()  # operations that another one's instruction does
        self._residuals = self._find_residuals()
        self._quantised: set[Value] = set()
        self.instructions: list[Instruction] = []
        for index, op in enumerate(self._ops):
            if index not in self._absorbed and not (isinstance(op, Rope) and self._rotated_by_attention(op)):
                self._lower(index, op)

    def _integer_parts(self, op: Linear) -> bool:
        return any(self._is_integer(name) for name in op.weights)

    def _reads_floats(self, op: Op | None) -> bool:
        return not isinstance(op, Linear) or not all(self._is_integer(name) for name in op.weights)

    def _find_residuals(self) -> dict[int, Add]:
        """Projections (by index) whose result goes nowhere but into an Add with something computed before."""
        found: dict[int, Add] = {}
        for index, op in enumerate(self._ops):
            if not isinstance(op, Add):
                continue
            for value, other in ((op.y, op.x), (op.x, op.y)):
                at = self._producer[value.buffer]
                producer = self._ops[at]
                used_once = len(self._reads[value.buffer]) == 1
                if isinstance(producer, Linear) and producer.out == value and used_once and self._producer[other.buffer] < at:
                    found[at] = op
                    self._absorbed.add(index)
                    break
        return found

    def _rotated_by_attention(self, rope: Rope) -> bool:
        reads = self._reads.get(rope.out.buffer, [])
        return bool(reads) and all(
            isinstance(op, PagedAttention) and op.head_dim == rope.head_dim and value == rope.out and op.v != value for op, value in reads
        )

    def _before_rope(self, value: Value) -> tuple[Value, Rope | None]:
        producer = self._ops[self._producer[value.buffer]]
        if isinstance(producer, Rope) and self._rotated_by_attention(producer):
            return producer.x, producer
        return value, None

    def _result(self, out: Value) -> tuple[Value | None, Quantised | None]:
        """The forms of a result that its readers need."""
        floats = any(self._reads_floats(op) or value != out for op, value in self._reads.get(out.buffer, []))
        if out not in self._read_as_integers:
            return out, None
        self._quantised.add(out)
        return (out if floats else None), Quantised(out)

    def _lower(self, index: int, op: Op) -> None:
        emit = self.instructions.append
        match op:
            case Embedding():
                emit(EmbeddingI(op.weight, op.out))
            case RMSNorm():
                emit(RMSNormI(op.x, op.weight, op.eps, *self._result(op.out)))
            case Linear():
                quantised = Quantised(op.x) if self._integer_parts(op) else None
                if quantised is not None and op.x not in self._quantised:
                    emit(QuantizeI(op.x, quantised))
                    self._quantised.add(op.x)
                add = self._residuals.get(index)
                residual = None if add is None else add.x if add.y == op.out else add.y
                parts = tuple(zip(op.weights, op.biases or (None,) * len(op.weights), strict=True))
                emit(LinearI(op.x if self._reads_floats(op) else None, quantised, parts, residual, op.out if add is None else add.out))
            case Rope():
                emit(RopeI(op.x, op, op.out))
            case PagedAttention():
                k, k_rope = self._before_rope(op.k)
                q, q_rope = self._before_rope(op.q)
                emit(WriteKVI(k, op.v, k_rope, op.layer))
                emit(AttentionI(q, q_rope, op.layer, op.num_heads, op.scale, op.out))
            case SiluMul():
                emit(SiluMulI(op.gate, op.up, *self._result(op.out)))
            case Add():
                emit(AddI(op.x, op.y, op.out))
            case SelectRows():
                emit(SelectRowsI(op.x, op.out))
