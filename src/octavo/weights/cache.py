"""The user's cache directory, as the XDG specification places it, and atomic writes into it.

What lies there can be deleted at any time; it is made again when needed. Nothing is ever visible
half-written: a file is written under a temporary name beside its place and moved there with ``os.replace``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import platformdirs


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/octavo`` or the platform's equivalent. It may not exist yet."""
    return Path(platformdirs.user_cache_dir("octavo", appauthor=False))


def write_atomically(path: Path, data: bytes) -> None:
    """Creates or replaces ``path`` so that a reader sees the old bytes or all of the new ones.

    Raises ``OSError`` when the directory cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
