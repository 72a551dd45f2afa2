"""Rows that no logits are asked of are computed no further than somebody reads them.

A model selects its logits rows before its head. Most of what comes before works row by row, back to the last layer's
attention, of which other rows need K and V only. So the selection moves up: an operation whose result is read through
the selection alone is done for the logits rows, and what it reads of all rows is selected before it. No bit of any
result changes, for no row depends on which others are computed with it.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from octavo.program import BufferSpec, Embedding, Op, PagedAttention, Program, Rows, SelectRows, Value, inputs_of


def select_early(program: Program) -> Program:
    """The same program with its selections as far up as they go; buffers keep their numbers, those of new values follow."""
    return _Mover(program).program


def _row_inputs(op: Op) -> tuple[Value, ...]:
    """What ``op`` reads the same row of as it writes; of K and V it needs all rows."""
    if isinstance(op, PagedAttention):
        return () if op.q in (op.k, op.v) else (op.q,)
    return inputs_of(op)


def _find_narrow(program: Program) -> set[int]:
    """Buffers with a row per token of which nothing but the logits rows is ever read."""
    narrow: set[int] = set()
    readers: dict[int, list[tuple[Op, Value]]] = {}
    for op in reversed(program.ops):
        reads = readers.get(op.out.buffer, [])
        can_be = bool(reads) and op.out.rows is Rows.TOKENS and not isinstance(op, Embedding)
        if can_be and all(isinstance(by, SelectRows) or (by.out.buffer in narrow and value in _row_inputs(by)) for by, value in reads):
            narrow.add(op.out.buffer)
        for value in inputs_of(op):
            readers.setdefault(value.buffer, []).append((op, value))
    return narrow


class _Mover:
    def __init__(self, program: Program) -> None:
        self._narrow = _find_narrow(program)
        self._buffers = [replace(spec, rows=Rows.LOGITS) if buffer in self._narrow else spec for buffer, spec in enumerate(program.buffers)]
        self._ops: list[Op] = []
        self._selected: dict[Value, Value] = {}
        self._replaced: dict[int, Value] = {}  # results of selections that are gone
        narrow_ops = [op for op in program.ops if op.out.buffer in self._narrow]
        reads = (op.q if isinstance(op, PagedAttention) else value for op in narrow_ops for value in inputs_of(op))
        wanted = dict.fromkeys(value for value in reads if value.buffer not in self._narrow)
        begun: set[int] | None = set()
        for op in program.ops:
            if begun is not None and op.out.buffer in self._narrow:  # as early as can be: what is read of all rows may end here
                for value in wanted:
                    if value.buffer in begun:
                        self._select(value)
                begun = None
            self._move(op)
            if begun is not None:
                begun.add(op.out.buffer)
                continue
            for value in wanted:
                if value.buffer == op.out.buffer:
                    self._select(value)
        self.program = replace(program, ops=tuple(self._ops), buffers=tuple(self._buffers), logits=self._place(program.logits))

    def _select(self, value: Value) -> None:
        self._buffers.append(BufferSpec(Rows.LOGITS, value.width))
        out = Value(len(self._buffers) - 1, Rows.LOGITS, 0, value.width)
        self._ops.append(SelectRows(out, value))
        self._selected[value] = out

    def _place(self, value: Value) -> Value:
        if value.buffer in self._replaced:
            return self._replaced[value.buffer].columns(value.offset, value.width)
        return replace(value, rows=self._buffers[value.buffer].rows)

    def _move(self, op: Op) -> None:
        if isinstance(op, SelectRows):
            x = self._selected.get(op.x, self._place(op.x))
            if x.rows is Rows.LOGITS:
                self._replaced[op.out.buffer] = x
                return
        values: dict[str, Any] = {f.name: value for f in fields(op) if isinstance(value := getattr(op, f.name), Value)}
        whole = ("k", "v") if isinstance(op, PagedAttention) else ()
        narrow = op.out.buffer in self._narrow
        for name, value in values.items():
            early = narrow and name not in whole and value in self._selected
            values[name] = self._selected[value] if early else self._place(value)
        self._ops.append(replace(op, **values))
