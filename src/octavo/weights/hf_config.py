"""Typed reading of a Hugging Face directory's JSON files, with errors that name the file, the key and the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 1 << 25
_MISSING: Any = object()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ``OSError`` when it cannot be read, ``ValueError`` when it is too large or no JSON object."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: has {size} bytes; at most {MAX_JSON_BYTES} are accepted")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError(f"{path}: is not usable: its JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} occurs twice")
    return value


class Config:
    """An object out of ``config.json``; a JSON null counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self._values = values
        self._prefix = prefix

    def integer(self, key: str, default: int = _MISSING, *, low: int = 1, high: int = 1 << 31) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(key, f"must be an integer in [{low}, {high}]")
        return int(value)

    def real(self, key: str, default: float = _MISSING, *, low: float = 0.0, high: float = 1e12) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            self.fail(key, f"must be a number in ({low}, {high}]")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return bool(value)

    def text(self, key: str, default: str = _MISSING) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            self.fail(key, "must be a string")
        return str(value)

    def section(self, key: str) -> Config | None:
        """The object at ``key``, ``None`` if there is none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, "must be an object")
        return Config(self.path, value, f"{self._prefix}{key}.")

    def get(self, key: str) -> Any:
        """The value as it is, ``None`` if there is none."""
        return self._values.get(key)

    def fail(self, key: str, hint: str) -> NoReturn:
        value = self._values.get(key)
        raise ValueError(f"{self.path}: {self._prefix}{key}={value!r:.100} is invalid: {hint}")

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is _MISSING:
            raise ValueError(f"{self.path}: the key {self._prefix}{key} is missing")
        return value
