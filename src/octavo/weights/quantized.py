"""``quantized``: a checkpoint whose floating-point matrices are quantised as they are asked for.

Which: every weight of two or more dimensions whose rows are whole groups of 32, except those in ``KEPT``. The embedding and the output
matrix, which decide the logits directly, take 8 bits in groups whatever the others take, as the usual 4-bit files have it. Norms, biases,
tables of positions and what the file has quantised already stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

from octavo.weights.fingerprint import FINGERPRINT_DIGITS
from octavo.weights.quantize import GROUP, quantize_tensor
from octavo.weights.table import TensorTable
from octavo.weights.tensor import Checkpoint, ComputedTensor, Tensor, TensorType

Quantization = Literal["int8", "int8-channel", "int4"]

KEPT = ("ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "rope_freqs.weight")
"""Endings of names: routers of experts, whose small errors choose other experts, and small tables that are added or looked up."""

EIGHT_BITS = ("token_embd.weight", "output.weight")

_REVISION = 1
"""Part of the fingerprint: to be raised when other integers come out of the same weights."""


def quantized(checkpoint: Checkpoint, quantization: Quantization) -> Checkpoint:
    """``checkpoint`` with its matrices as Q8_0 (``int8``), I8_CHANNEL (``int8-channel``) or Q4_1 (``int4``).

    Nothing is computed before ``Tensor.data`` is read, and nothing kept: read it once. Raises ``ValueError`` for another
    ``quantization``.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(f"quantization={quantization!r} is invalid: choose one of {', '.join(get_args(Quantization))}")
    return QuantizedCheckpoint(checkpoint, quantization)


class QuantizedCheckpoint:
    """See ``quantized``. ``tensors`` refuses what the original refuses."""

    def __init__(self, original: Checkpoint, quantization: Quantization) -> None:
        self._original = original
        self.quantization: Quantization = quantization
        tensors = original.tensors
        entries = tensors.entries if isinstance(tensors, TensorTable) else tensors
        self._tensors = TensorTable({name: _entry(entry, quantization) for name, entry in entries.items()})

    @property
    def path(self) -> Path:
        return self._original.path

    @property
    def architecture(self) -> str:
        return self._original.architecture

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._original.metadata

    @property
    def tensors(self) -> TensorTable:
        return self._tensors

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits: of the original's fingerprint and the quantisation."""
        identity = f"{self._original.fingerprint}-{self.quantization}-{_REVISION}"
        return hashlib.sha256(identity.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def target_type(tensor: Tensor, quantization: Quantization) -> TensorType:
    """What ``tensor`` is quantised to: its own type if it stays as it is."""
    matrix = tensor.type.is_float and len(tensor.shape) >= 2 and tensor.shape[-1] % GROUP == 0 and tensor.name.endswith(".weight")
    if not matrix or tensor.name.endswith(KEPT):
        return tensor.type
    if tensor.name in EIGHT_BITS:
        return TensorType.Q8_0
    return {"int8": TensorType.Q8_0, "int8-channel": TensorType.I8_CHANNEL, "int4": TensorType.Q4_1}[quantization]


def _entry(entry: Tensor | str, quantization: Quantization) -> Tensor | str:
    if isinstance(entry, str):
        return entry
    kind = target_type(entry, quantization)
    return entry if kind is entry.type else ComputedTensor(entry.name, kind, entry.shape, partial(quantize_tensor, entry, kind))
