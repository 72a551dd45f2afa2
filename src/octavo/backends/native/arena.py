"""Places in memory: every operand of the instructions gets a part of one arena, reused once nobody reads it any more.

Rows of floats are padded to a multiple of 16 and 16 more, so that neighbouring rows never lie a multiple of 4 KiB
apart (which would make them compete for the same cache sets).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.backends.native.instructions import Instruction, LinearI, Operand, Quantised, operands
from octavo.program import Program, Rows, Value

ALIGNMENT = 64
GROUP = 32
PADDING_FLOATS = 16


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def row_stride(width: int) -> int:
    """Floats from one row of a buffer to the next."""
    return round_up(width, PADDING_FLOATS) + PADDING_FLOATS


@dataclass(slots=True)
class _Interval:
    num_bytes: int
    first: int
    last: int
    offset: int = 0


class Arena:
    """``num_bytes`` in all; ``offset(operand)`` is where its buffer, or its int8 form, begins.

    ``windows``: the rows of the buffers that have room for less than all. What writes such a buffer takes turns with
    the instruction after it, so what it reads must outlive that one.
    """

    def __init__(
        self, program: Program, instructions: Sequence[Instruction], max_rows: Mapping[Rows, int], windows: Mapping[int, int]
    ) -> None:
        self._program = program
        self._max_rows = max_rows
        self._windows = windows
        self._intervals: dict[int | Quantised, _Interval] = {}
        for index, instruction in enumerate(instructions):
            reads, writes = operands(instruction)
            again = isinstance(instruction, LinearI) and instruction.out.buffer in windows
            for operand in (*writes, *reads):
                self._touch(operand, index, index + again)
        self._touch(program.logits, len(instructions), len(instructions))
        self.num_bytes = self._place(min((_by_birth, _by_size), key=self._place))

    def offset(self, operand: Operand) -> int:
        return self._intervals[_key(operand)].offset

    def _touch(self, operand: Operand, first: int, last: int) -> None:
        interval = self._intervals.setdefault(_key(operand), _Interval(self._size(operand), first, last))
        interval.last = last

    def _size(self, operand: Operand) -> int:
        if isinstance(operand, Quantised):
            rows, width = self._max_rows[operand.value.rows], operand.value.width
            return round_up(rows * width, ALIGNMENT) + 3 * round_up(rows * (width // GROUP) * 4, ALIGNMENT)
        spec = self._program.buffers[operand.buffer]
        rows = self._windows.get(operand.buffer, self._max_rows[spec.rows])
        return round_up(rows * row_stride(spec.width) * 4, ALIGNMENT)

    def _place(self, order: Callable[[_Interval], tuple[int, int]]) -> int:
        """First fit in the given order: below everything that is alive at the same time. Returns the bytes in all.

        In order of birth what follows lies where something has just been read; by size fewer holes are left.
        """
        placed: list[_Interval] = []
        end = 0
        for interval in sorted(self._intervals.values(), key=order):
            alive = sorted((p for p in placed if p.last >= interval.first and p.first <= interval.last), key=lambda p: p.offset)
            offset = 0
            for other in alive:
                if offset + interval.num_bytes <= other.offset:
                    break
                offset = max(offset, other.offset + other.num_bytes)
            interval.offset = offset
            placed.append(interval)
            end = max(end, offset + interval.num_bytes)
        return end


def _by_birth(interval: _Interval) -> tuple[int, int]:
    return interval.first, -interval.num_bytes


def _by_size(interval: _Interval) -> tuple[int, int]:
    return -interval.num_bytes, interval.first


def _key(operand: Operand) -> int | Quantised:
    return operand if isinstance(operand, Quantised) else operand.buffer


def quantised_parts(arena: Arena, operand: Quantised, max_rows: int) -> tuple[int, int, int, int]:
    """Offsets of the bytes, the scales, the sums per group and the pairs of sums of its halves."""
    q = arena.offset(operand)
    scale = q + round_up(max_rows * operand.value.width, ALIGNMENT)
    num_bytes = round_up(max_rows * (operand.value.width // GROUP) * 4, ALIGNMENT)
    return q, scale, scale + num_bytes, scale + 2 * num_bytes


def float_place(arena: Arena, value: Value, program: Program) -> tuple[int, int]:
    """Offset in bytes and row stride in floats of a value."""
    return arena.offset(value) + 4 * value.offset, row_stride(program.buffers[value.buffer].width)
