"""A program's listing with layers that are alike written once: behind ``octavo inspect program``.

An operation belongs to the layer whose weights or cache it uses, one without either to that of the operation before it. Layers
are alike when their lines are the same up to the layer's number and the place of its buffers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from octavo.program import Program
from octavo.program.ops import Op, weights_of

_LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_BUFFER = re.compile(r"%(\d+)\[")


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive lines of one layer (``None``: of none), and what they say up to numbers."""

    layer: int | None
    lines: tuple[str, ...]
    pattern: tuple[str, ...]


def listing(program: Program, *, full: bool = False) -> str:
    """``str(program)``; unless ``full``, of neighbouring layers that are alike only the first."""
    title, *lines = str(program).splitlines()
    if full:
        return "\n".join([title, *lines])
    layers = _layers(program.ops)
    shown = [title]
    for _, alike in groupby(_groups(program.ops, lines, layers), key=lambda group: group.pattern):
        first, *others = alike
        if first.layer is not None:
            shown.append(f"  layer {first.layer}:")
        else:
            shown.append("  outside the layers:")
        shown.extend(first.lines)
        if others:
            numbers = f"layer {others[0].layer} is" if len(others) == 1 else f"layers {others[0].layer} to {others[-1].layer} are"
            shown.append(f"  {numbers} like it ({sum(len(group.lines) for group in others)} operations)")
    return "\n".join(shown)


def _layers(ops: tuple[Op, ...]) -> list[int | None]:
    """Each operation's layer; ``None`` for those that read weights of the model as a whole, and what follows them."""
    found: list[int | None] = []
    current: int | None = None
    for op in ops:
        layer = _own_layer(op)
        if layer is not None or weights_of(op):
            current = layer
        found.append(current)
    return found


def _own_layer(op: Op) -> int | None:
    layer = getattr(op, "layer", None)
    if isinstance(layer, int):
        return layer
    numbers = [int(match[1]) for name in weights_of(op) if (match := _LAYER.search(name))]
    return numbers[0] if numbers else None


def _groups(ops: tuple[Op, ...], lines: list[str], layers: list[int | None]) -> list[_Group]:
    groups = []
    for layer, members in groupby(range(len(lines)), key=lambda index: layers[index]):
        indices = list(members)
        base = ops[indices[0]].out.buffer
        own = tuple(lines[index] for index in indices)
        pattern = tuple(_pattern(line, layer, base) for line in own)
        groups.append(_Group(layer, own, pattern if layer is not None else (f"@{indices[0]}", *pattern)))
    return groups


def _pattern(line: str, layer: int | None, base: int) -> str:
    line = _BUFFER.sub(lambda match: f"%{int(match[1]) - base:+d}[", line.strip())
    return line if layer is None else line.replace(f"blk.{layer}.", "blk.*.").replace(f"layer={layer}", "layer=*")
