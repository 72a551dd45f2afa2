"""Which buffers hold a window of their rows only, so that wide models need less memory.

A projection whose result nothing reads but the SiluMul right after it (gate and up, side by side) need not be finished
before that begins: the executor computes some rows, multiplies them and goes on to the next in the same place. As the
weights are read once for each window, a buffer that is small as a whole stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from octavo.backends.native.arena import row_stride
from octavo.backends.native.instructions import Instruction, LinearI, SiluMulI, operands
from octavo.program import Program, Rows, Value

WINDOW_BYTES = 12 << 20
"""Buffers up to this size stay whole; a window is as many rows as fit."""

LEAST_ROWS = 96
"""Of a window, however wide the rows: below, reading the weights again takes longer than multiplying by them."""

ROW_UNIT = 16
"""Windows are multiples of this, as the kernels' tiles of rows are."""


def find_windows(program: Program, instructions: Sequence[Instruction], max_rows: dict[Rows, int]) -> dict[int, int]:
    """Buffer → rows that it has room for, of those that have room for less than all."""
    users: dict[int, list[int]] = {program.logits.buffer: [len(instructions)]}
    for index, instruction in enumerate(instructions):
        reads, writes = operands(instruction)
        for buffer in {operand.buffer for operand in (*reads, *writes) if isinstance(operand, Value)}:
            users.setdefault(buffer, []).append(index)
    windows = {}
    for index, (linear, silu_mul) in enumerate(pairwise(instructions)):
        if not isinstance(linear, LinearI) or not isinstance(silu_mul, SiluMulI):
            continue
        buffer = linear.out.buffer
        if not silu_mul.gate.buffer == silu_mul.up.buffer == buffer or users[buffer] != [index, index + 1]:
            continue
        spec = program.buffers[buffer]
        fit = max(LEAST_ROWS, WINDOW_BYTES // (4 * row_stride(spec.width))) // ROW_UNIT * ROW_UNIT
        if fit < max_rows[spec.rows]:
            windows[buffer] = fit
    return windows
