"""Opening a checkpoint from a path, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.weights.gguf_model import GGUFCheckpoint, part_names
from octavo.weights.huggingface import CONFIG, HuggingFaceCheckpoint
from octavo.weights.tensor import Checkpoint


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a ``.gguf`` file (any part of a split one), a Hugging Face directory, or the only GGUF model in a directory.

    Weights are mapped, not read. Raises ``ValueError`` with the file's name and what is wrong with it, ``OSError`` when it cannot be
    opened.
    """
    path = Path(path)
    if not path.is_dir():
        if path.suffix in (".safetensors", ".json") and (path.parent / CONFIG).exists():
            raise ValueError(f"{path}: is a part of a Hugging Face directory; give the directory, {path.parent}")
        return GGUFCheckpoint(path)
    if (path / CONFIG).exists():
        return HuggingFaceCheckpoint(path)
    models = sorted({_first_part(file.name) for file in path.glob("*.gguf")})
    if len(models) != 1:
        found = ", ".join(models) if models else "none"
        raise ValueError(f"{path}: a directory must hold config.json or exactly one .gguf file to be opened; found: {found}")
    return GGUFCheckpoint(path / models[0])


def _first_part(name: str) -> str:
    names = part_names(name)
    return name if names is None else names[0]
