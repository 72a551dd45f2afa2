"""From an architecture's name to the family that reads its hyperparameters and writes its program."""

from __future__ import annotations

from collections.abc import Callable

from octavo.program import Program
from octavo.weights.tensor import Checkpoint

ProgramWriter = Callable[[Checkpoint, int | None], Program]
"""(checkpoint, max_model_len or None for the model's own) → program. Raises ``ValueError`` naming what does not fit."""

_FAMILIES: dict[str, ProgramWriter] = {}


def register(architecture: str) -> Callable[[ProgramWriter], ProgramWriter]:
    def decorate(writer: ProgramWriter) -> ProgramWriter:
        _FAMILIES[architecture] = writer
        return writer

    return decorate


def build_program(checkpoint: Checkpoint, max_model_len: int | None = None) -> Program:
    """The program of a checkpoint, its context length capped to ``max_model_len``.

    Raises ``ValueError`` for an architecture or hyperparameters that are not supported.
    """
    writer = _FAMILIES.get(checkpoint.architecture)
    if writer is None:
        known = ", ".join(sorted(_FAMILIES))
        raise ValueError(f"{checkpoint.path.name}: architecture {checkpoint.architecture!r} is not supported; known are {known}")
    program = writer(checkpoint, max_model_len)
    _check_tensors(checkpoint, program)
    return program


def _check_tensors(checkpoint: Checkpoint, program: Program) -> None:
    """Every weight must be there, and nothing of a layer may be left unread: a bias that is ignored gives wrong answers."""
    for name in program.weights:
        if name not in checkpoint.tensors:
            raise ValueError(f"{checkpoint.path.name}: the tensor {name!r} is missing")
    for name in checkpoint.tensors:
        if name.startswith(("blk.", "output")) and name not in program.weights:
            raise ValueError(f"{checkpoint.path.name}: the {program.name} family does not know what to do with the tensor {name!r}")
