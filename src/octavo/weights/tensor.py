"""``Tensor`` and ``Checkpoint``: what a weight file offers, whatever its format.

Tensor names are GGUF's (``blk.0.attn_q.weight``) for every source, shapes are NumPy's (rows first), and the
bytes stay as they are in the file, memory-mapped, until a backend packs or dequantises them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class TensorType(Enum):
    """How a tensor's elements are stored: (block length in elements, bytes per block)."""

    F32 = (1, 4)
    F16 = (1, 2)
    BF16 = (1, 2, "bf16")
    Q8_0 = (32, 34)
    Q4_0 = (32, 18)
    Q4_1 = (32, 20)

    @property
    def block_length(self) -> int:
        return int(self.value[0])

    @property
    def block_bytes(self) -> int:
        return int(self.value[1])


@dataclass(frozen=True, slots=True)
class Tensor:
    """``data`` is the raw bytes in the file's layout: uint8, shape (rows, bytes per row), usually a memory map."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)


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
