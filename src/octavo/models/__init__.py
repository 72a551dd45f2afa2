"""Model families: one file each, which reads a checkpoint's hyperparameters and writes its program."""

from octavo.models import llama as _llama
from octavo.models.registry import build_program, register

__all__ = ["build_program", "register"]

del _llama
