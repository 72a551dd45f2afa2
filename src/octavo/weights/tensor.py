"""``Tensor`` and ``Checkpoint``: what a weight file offers, whatever its format.

Tensor names are GGUF's (``blk.0.attn_q.weight``) for every source, shapes are NumPy's (rows first), and the
bytes stay as they are in the file, memory-mapped, until a backend packs or dequantises them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class TensorType(Enum):
    """How a tensor's elements are stored: (block length in elements, bytes per block; a name where those two are another's)."""

    F32 = (1, 4)
    F16 = (1, 2)
    BF16 = (1, 2, "bf16")
    Q8_0 = (32, 34)
    Q4_0 = (32, 18)
    Q4_1 = (32, 20)
    Q5_0 = (32, 22)
    Q5_1 = (32, 24)
    Q2_K = (256, 84)
    Q3_K = (256, 110)
    Q4_K = (256, 144)
    Q5_K = (256, 176)
    Q6_K = (256, 210)
    IQ4_NL = (32, 18, "iq4_nl")
    IQ4_XS = (256, 136)
    I8_CHANNEL = (32, 34, "i8_channel")
    """Q8_0 with one scale for a whole row, the same in all of its blocks. In no file: what quantising at load makes."""

    @property
    def block_length(self) -> int:
        return int(self.value[0])

    @property
    def block_bytes(self) -> int:
        return int(self.value[1])

    @property
    def is_float(self) -> bool:
        """F32, F16 or BF16: an element is a number by itself."""
        return self.block_length == 1

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of ``num_elements``, which must be whole blocks."""
        return num_elements // self.block_length * self.block_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """``data`` is the raw bytes in the file's layout: uint8, shape (rows, bytes per row), usually a memory map."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def num_bytes(self) -> int:
        return self.type.num_bytes(math.prod(self.shape))


class ComputedTensor(Tensor):
    """A tensor whose bytes are made each time ``data`` is read, and not kept: read it once."""

    __slots__ = ("_compute",)
    _compute: Callable[[], npt.NDArray[np.uint8]]

    def __init__(self, name: str, type: TensorType, shape: tuple[int, ...], compute: Callable[[], npt.NDArray[np.uint8]]) -> None:
        """``compute()`` returns uint8 of shape (rows, bytes per row), as ``Tensor.data`` has it."""
        for field, value in (("name", name), ("type", type), ("shape", shape), ("_compute", compute)):
            object.__setattr__(self, field, value)

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._compute()

    def __repr__(self) -> str:
        return f"ComputedTensor(name={self.name!r}, type={self.type}, shape={self.shape})"

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Checkpoint(Protocol):
    """A model as it lies on disk."""

    @property
    def path(self) -> Path: ...

    @property
    def architecture(self) -> str:
        """The family's name, e.g. ``llama``: the key of the model registry."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's key-value pairs: hyperparameters (``llama.block_count``), tokenizer, chat template."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def fingerprint(self) -> str:
        """A short hex digest that changes whenever any weight or hyperparameter does."""
        ...
