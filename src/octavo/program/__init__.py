"""A model as a program: operations over ragged rows, written once by ``models/`` and run by ``backends/``."""

from octavo.program.builder import ProgramBuilder
from octavo.program.ops import (
    Add,
    Embedding,
    Linear,
    Op,
    PagedAttention,
    RMSNorm,
    Rope,
    RopeStyle,
    Rows,
    SelectRows,
    SiluMul,
    Value,
    inputs_of,
    weights_of,
)
from octavo.program.program import BufferSpec, KVSpec, Program

__all__ = [
    "Add",
    "BufferSpec",
    "Embedding",
    "KVSpec",
    "Linear",
    "Op",
    "PagedAttention",
    "Program",
    "ProgramBuilder",
    "RMSNorm",
    "Rope",
    "RopeStyle",
    "Rows",
    "SelectRows",
    "SiluMul",
    "Value",
    "inputs_of",
    "weights_of",
]
