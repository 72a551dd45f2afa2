"""Where fetched models lie in the cache: one directory each under ``models/``, filled by one process at a time, whole or not there.

A model with an alias lies under its alias, and the sizes of its files are known beforehand. One from anywhere else has a manifest,
``.source.json``, that is written last: what it was called, which files it has and which of them to open. Everything
else that may be found in such a directory (locks, partial downloads) is of no consequence.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from octavo.weights.cache import cache_directory, write_atomically
from octavo.weights.sources import ALIASES, ModelSource
from octavo.weights.specification import parse

ProgressCallback = Callable[[int, int], None]
"""``on_progress(done_bytes, total_bytes)``: called with growing ``done_bytes`` of the download, at last with both equal."""

MANIFEST = ".source.json"
_POLL_S = 0.1


class PullError(RuntimeError):
    """A model could not be fetched; the message says what failed and what can be done."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """``name`` is what ``pull``, ``resolve`` and ``remove_model`` know it by, ``path`` what ``open_checkpoint`` opens."""

    name: str
    path: Path
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """The files of a model, relative to its directory, and the one to open; ``opened=None`` means the directory."""

    files: tuple[str, ...]
    opened: str | None


def models_directory() -> Path:
    return cache_directory() / "models"


def model_directory(folder: str) -> Path:
    """Of an alias or of a specification's ``folder``."""
    return models_directory() / folder


def cached_path(source: ModelSource) -> Path | None:
    """Where the model of an alias lies in the cache, or ``None`` if it (or a part of it) is not there."""
    directory = model_directory(source.alias)
    for file in source.files:
        try:
            if (directory / file.name).stat().st_size != file.num_bytes:
                return None
        except OSError:
            return None
    return directory / source.files[0].name if len(source.files) == 1 else directory


def stored_model(directory: Path) -> CachedModel | None:
    """The model in a directory with a manifest, or ``None`` if there is none or a file is missing or of another size."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        name, files, opened = manifest["name"], manifest["files"], manifest["opened"]
        if not isinstance(name, str) or not isinstance(opened, str | None) or not files or (opened is not None and opened not in files):
            return None
        if any((directory / file).stat().st_size != size for file, size in files.items()):
            return None
        return CachedModel(name, directory if opened is None else directory / opened, sum(files.values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def fetch_into(folder: str, name: str, work: Callable[[Path, int | None, Progress], Fetched], on_progress: ProgressCallback | None) -> Path:
    """The path of the model ``name`` in ``folder``, which ``work(directory, lock, progress)`` fetches if it is not there.

    Any number of processes may call this at once: one works, the others wait for it. Raises ``PullError``.
    """
    directory = model_directory(folder)
    present = stored_model(directory)
    if present is not None:
        return present.path
    progress = Progress(0, on_progress)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / ".lock", lambda: None) as lock:
            present = stored_model(directory)  # another process may have fetched it while this one waited
            if present is None:
                if lock is not None:  # otherwise they may be another process's work
                    sweep(directory)
                fetched = work(directory, lock, progress)
                files = {file: (directory / file).stat().st_size for file in fetched.files}
                manifest = {"name": name, "opened": fetched.opened, "files": files}
                write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1).encode())
                present = stored_model(directory)
    except OSError as error:
        raise PullError(f"could not store {name} in {directory}: {error}") from error
    if present is None:
        raise PullError(f"{name} vanished from {directory} while it was being stored")
    progress.finish()
    return present.path


def list_models() -> list[CachedModel]:
    """The models that are whole in the cache, by name."""
    found: list[CachedModel] = []
    for directory in _directories():
        source = ALIASES.get(directory.name)
        if source is None:
            model = stored_model(directory)
        else:
            path = cached_path(source)
            model = None if path is None else CachedModel(source.alias, path, sum(file.num_bytes for file in source.files))
        if model is not None:
            found.append(model)
    return sorted(found, key=lambda model: model.name)


def remove_model(name: str) -> int:
    """Deletes a model (or what a broken download left of it) from the cache; returns the bytes freed.

    ``name`` is an alias or a specification as ``pull`` takes it. A process that has the model open keeps what it has mapped. Raises
    ``ValueError`` when there is nothing of that name, ``OSError`` when it cannot be deleted.
    """
    if name in ALIASES:
        folder: str | None = name
    else:
        specification = parse(name)
        folder = None if specification is None else specification.folder
    directory = None if folder is None else model_directory(folder)
    if directory is None or not directory.is_dir() or not _contents(directory):
        known = ", ".join(model.name for model in list_models()) or "nothing"
        raise ValueError(f"model={name!r} is not in the cache, which holds {known}")
    with locked(directory / ".lock", lambda: None):
        freed = sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())
        (directory / MANIFEST).unlink(missing_ok=True)  # first: from here on it is not there
        for path in _contents(directory):  # but the lock, for which others may be waiting
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def _directories() -> list[Path]:
    try:
        return [path for path in models_directory().iterdir() if path.is_dir()]
    except OSError:
        return []


def _contents(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name != ".lock"]


def sweep(directory: Path) -> None:
    """Removes what a killed process left behind; the caller holds the lock."""
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class Progress:
    """Makes what is reported monotonic, bounded by the total until everything is done, and free of repetition.

    ``total_bytes`` may be 0, unknown, and set later; nothing is reported before.
    """

    def __init__(self, total_bytes: int, callback: ProgressCallback | None) -> None:
        self.total_bytes = total_bytes
        self._callback = callback
        self._last_bytes = -1

    def __call__(self, done_bytes: int) -> None:
        done_bytes = min(done_bytes, self.total_bytes)
        if self._callback is not None and self.total_bytes and done_bytes > self._last_bytes:
            self._last_bytes = done_bytes
            self._callback(done_bytes, self.total_bytes)

    def finish(self) -> None:
        self(self.total_bytes)


@contextlib.contextmanager
def locked(path: Path, while_waiting: Callable[[], None]) -> Iterator[int | None]:
    """Holds an advisory lock on ``path``, which the system frees when every process that has it is gone.

    Gives its descriptor, or ``None`` where there are no such locks: concurrent pulls then only meet in ``os.replace``.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with open(path, "ab") as file:
        descriptor: int | None = file.fileno()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks
                descriptor = None
                break
        yield descriptor


def check_space(directory: Path, name: str, num_bytes: int) -> None:
    """Raises ``PullError`` when ``num_bytes`` more do not fit where ``directory`` is."""
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise PullError(f"{name} takes {num_bytes / 1e6:.0f} MB more, and {directory} has room for {free / 1e6:.0f} MB")


def put(source: Path, target: Path) -> None:
    """Moves a finished file to its place, durably."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
