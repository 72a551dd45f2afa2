"""Typed reading of a checkpoint's key-value pairs, with errors that name the key and the value."""

from __future__ import annotations

from typing import Any

from octavo.weights.tensor import Checkpoint

_MISSING: Any = object()


class Hyperparameters:
    """The keys of ``checkpoint.metadata`` under the architecture's own prefix (``llama.block_count``)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._metadata = checkpoint.metadata
        self._prefix = checkpoint.architecture + "."
        self._file = checkpoint.path.name

    def integer(self, key: str, default: int = _MISSING, *, low: int = 1, high: int = 1 << 24) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{self._file}: {self._prefix}{key}={value!r} is invalid: must be an integer in [{low}, {high}]")
        return value

    def real(self, key: str, default: float = _MISSING, *, low: float = 0.0, high: float = 1e12) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            raise ValueError(f"{self._file}: {self._prefix}{key}={value!r} is invalid: must be a number in ({low}, {high}]")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self._file}: {self._prefix}{key}={value!r} is invalid: must be a string")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(self._prefix + key, default)
        if value is _MISSING:
            raise ValueError(f"{self._file}: the key {self._prefix}{key} is missing")
        return value
