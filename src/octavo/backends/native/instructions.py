"""What a program is lowered to: one dataclass per instruction of the native executor, its operands still symbolic.

An operand is a ``Value`` (floats) or a ``Quantised`` (the int8 form of a value). ``native/instructions.hpp`` holds
the same list with places in memory instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.program import Rope, Value


@dataclass(frozen=True, slots=True)
class Quantised:
    """The rows of ``value`` as bytes in [-127, 127] with a scale and a scaled sum per group of 32 and a sum per half of it."""

    value: Value


Operand = Value | Quantised


@dataclass(frozen=True, slots=True)
class EmbeddingI:
    weight: str
    out: Value


@dataclass(frozen=True, slots=True)
class RMSNormI:
    """Either form of the result, or both."""

    x: Value
    weight: str
    eps: float
    out: Value | None
    quantised: Quantised | None


@dataclass(frozen=True, slots=True)
class QuantizeI:
    x: Value
    out: Quantised


@dataclass(frozen=True, slots=True)
class LinearI:
    """``x`` feeds parts with float weights, ``quantised`` those with integer weights; ``residual`` is added to the result."""

    x: Value | None
    quantised: Quantised | None
    parts: tuple[tuple[str, str | None], ...]
    residual: Value | None
    out: Value


@dataclass(frozen=True, slots=True)
class RopeI:
    x: Value
    rope: Rope
    out: Value


@dataclass(frozen=True, slots=True)
class WriteKVI:
    """``rope`` rotates k on the way into the cache."""

    k: Value
    v: Value
    rope: Rope | None
    layer: int


@dataclass(frozen=True, slots=True)
class AttentionI:
    """``rope`` rotates q on the way in."""

    q: Value
    rope: Rope | None
    layer: int
    num_heads: int
    scale: float
    out: Value


@dataclass(frozen=True, slots=True)
class SiluMulI:
    """Either form of the result, or both."""

    gate: Value
    up: Value
    out: Value | None
    quantised: Quantised | None


@dataclass(frozen=True, slots=True)
class AddI:
    x: Value
    y: Value
    out: Value


@dataclass(frozen=True, slots=True)
class SelectRowsI:
    x: Value
    out: Value


Instruction = EmbeddingI | RMSNormI | QuantizeI | LinearI | RopeI | WriteKVI | AttentionI | SiluMulI | AddI | SelectRowsI


def operands(instruction: Instruction) -> tuple[list[Operand], list[Operand]]:
    """What it reads and what it writes."""
    match instruction:
        case EmbeddingI(out=out):
            return [], [out]
        case QuantizeI(x=x, out=quantised):
            return [x], [quantised]
        case RopeI(x=x, out=out) | SelectRowsI(x=x, out=out):
            return [x], [out]
        case RMSNormI(x=x):
            return [x], _present(instruction.out, instruction.quantised)
        case SiluMulI(gate=gate, up=up):
            return [gate, up], _present(instruction.out, instruction.quantised)
        case LinearI(out=out):
            return _present(instruction.x, instruction.quantised, instruction.residual), [out]
        case WriteKVI(k=k, v=v):
            return [k, v], []
        case AttentionI(q=q, out=out):
            return [q], [out]
        case AddI(x=x, y=y, out=out):
            return [x, y], [out]


def _present(*items: Operand | None) -> list[Operand]:
    return [item for item in items if item is not None]
