"""Opening a checkpoint from a path, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.tensor import Checkpoint


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a ``.gguf`` file, or the only one in a directory. Weights are mapped, not read.

    Raises ``ValueError`` with the file's name and what is wrong with it, ``OSError`` when it cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        candidates = sorted(path.glob("*.gguf"))
        if len(candidates) != 1:
            found = ", ".join(p.name for p in candidates) if candidates else "none"
            raise ValueError(f"{path}: a directory must hold exactly one .gguf file to be opened; found: {found}")
        path = candidates[0]
    return GGUFCheckpoint(path)
