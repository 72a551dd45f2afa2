"""``GGUFCheckpoint``: a model in one GGUF file, or in several that were split from one.

The parts of a split model are named ``STEM-00001-of-00003.gguf`` and carry ``split.no`` (from 0), ``split.count`` and
``split.tensors.count`` (of all parts together); only the first has the other key-value pairs (ggml-org/llama.cpp,
tools/gguf-split). Opening any part opens all, and a part that is missing or belongs to another set is named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.weights.fingerprint import FINGERPRINT_DIGITS
from octavo.weights.gguf import GGUFFile
from octavo.weights.table import TensorTable
from octavo.weights.tensor import Tensor

MAX_PARTS = 1024
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str] | None:
    """The names of all parts of the split model that the file name ``name`` belongs to; ``None`` if it is not such a name."""
    match = _PART_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MAX_PARTS:
        return None
    return [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


class GGUFCheckpoint:
    """An open GGUF model (a ``Checkpoint``). ``path`` is the file, of a split model the first part.

    Raises ``FileNotFoundError`` and other ``OSError`` when a file cannot be opened, ``ValueError`` when one is not sound, names no
    architecture, or a part is missing or does not fit the others. ``tensors`` refuses single tensors only when they are asked for.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        opened = GGUFFile(path)
        self._parts = [opened] if _split_number(opened, "split.count", 1) <= 1 else _open_parts(opened)
        architecture = self._parts[0].metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise ValueError(f"{self.path}: general.architecture={architecture!r} is invalid: it must name the model's family")
        self._architecture = architecture
        self._tensors = self._parts[0].tensors if len(self._parts) == 1 else _joined(self._parts)

    @property
    def path(self) -> Path:
        return self._parts[0].path

    @property
    def architecture(self) -> str:
        return self._architecture

    @property
    def metadata(self) -> Mapping[str, Any]:
        """int, float, bool, str and lists of these, in the file's order."""
        return self._parts[0].metadata

    @property
    def tensors(self) -> TensorTable:
        """By name, in the file's order."""
        return self._tensors

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits: the beginning of the whole file's SHA-256; of a split model, of its parts' digests one after the other."""
        if len(self._parts) == 1:
            return self._parts[0].fingerprint
        return hashlib.sha256("".join(part.fingerprint for part in self._parts).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _split_number(part: GGUFFile, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{part.path}: {key}={value!r} is invalid: it must be a number of parts or tensors")
    return value


def _open_parts(opened: GGUFFile) -> list[GGUFFile]:
    """All parts, in order, of the model that ``opened`` is one of."""
    path, count = opened.path, _split_number(opened, "split.count", 1)
    if count > MAX_PARTS:
        raise ValueError(f"{path}: split.count={count} is invalid: at most {MAX_PARTS} parts are accepted")
    names = part_names(path.name)
    if names is None or len(names) != count:
        raise ValueError(
            f"{path}: is one of {count} parts of a split model, which are found by their names: it must be called "
            f"STEM-NNNNN-of-{count:05d}.gguf, with NNNNN from 00001"
        )
    missing = [name for name in names if not path.with_name(name).exists()]
    if missing:
        raise ValueError(f"{path}: is one of {count} parts of a split model, of which are missing: {_some(missing)}")
    parts = [opened if name == path.name else GGUFFile(path.with_name(name)) for name in names]
    for number, part in enumerate(parts):
        for key, default, expected in (("split.no", 0, number), ("split.count", 1, count)):
            value = _split_number(part, key, default)
            if value != expected:
                raise ValueError(f"{part.path}: {key}={value} does not fit its name, which says {expected}: is it of another model?")
    total = sum(len(part.tensors) for part in parts)
    for part in parts:
        claimed = _split_number(part, "split.tensors.count", total)
        if claimed != total:
            raise ValueError(
                f"{part.path}: split.tensors.count={claimed}, but the {count} parts hold {total} tensors: a part is of another model"
            )
    return parts


def _joined(parts: list[GGUFFile]) -> TensorTable:
    entries: dict[str, Tensor | str] = {}
    for part in parts:
        for name, entry in part.tensors.entries.items():
            if name in entries:
                raise ValueError(f"{part.path}: the tensor {name!r} is in an earlier part of the model too")
            entries[name] = entry
    return TensorTable(entries)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
