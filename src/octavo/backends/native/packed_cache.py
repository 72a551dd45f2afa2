"""Packed weights on disk, one file for each model as it is packed, so that a second start neither packs nor quantises.

A file is a header (the layout as JSON, padded to a page), the matrices as the kernels read them, and a SHA-256 of them. It is
written under a temporary name, synced and moved into place, and never changed after that; a reader compares the whole header
with the one it would write itself, so nothing in a file is trusted to be a size or an offset. The JSON beside it names the model
it came from and the file's identity (inode, size, times): as long as that holds the bytes are those that were
written; otherwise they are hashed once. Whatever fails here costs time and a warning, never a start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import _native
from octavo.backends.native.packed_layout import PAGE, PackedLayout, round_up
from octavo.weights.cache import cache_directory, write_atomically

logger = logging.getLogger(__name__)

LIMIT_BYTES = 20 << 30
MAP_FROM_BYTES = 1 << 30
MINIMUM_BYTES = 16 << 20
SUFFIX, RECORD_SUFFIX, DRAFT_SUFFIX = ".packed", ".json", ".part"

_MAGIC = b"OctavoPW"
_DIGEST_BYTES = 32
_ABANDONED_S = 3600.0
_ORPHANED_S = 7 * 24 * 3600.0
"""A file whose model has gone is kept this long after its last use: a disk may only be unplugged."""
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Region:
    """Memory that a layout's matrices lie in, from byte ``base`` on. ``mapped``: it is the pages of a file."""

    memory: _native.Memory
    base: int = 0
    mapped: bool = False

    @classmethod
    def anonymous(cls, layout: PackedLayout) -> Region:
        """Zeroed, in huge pages. Raises ``MemoryError``."""
        return cls(_native.Memory(layout.num_bytes))

    def bytes(self, layout: PackedLayout) -> npt.NDArray[np.uint8]:
        return self.memory.bytes()[self.base : self.base + layout.num_bytes]


@dataclass(frozen=True)
class _Draft:
    """A file that is being written. The lock on it tells others that its writer lives."""

    path: str
    descriptor: int

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self.descriptor)


@dataclass
class PackedCache:
    """Where the packed weights of one model are kept.

    ``source`` and ``source_fingerprint``: the model's path and what its bytes were; files of the same path with other
    bytes are superseded. ``weights``: the checkpoint's fingerprint, quantisation at load included. ``variant`` tells what
    one path may be packed as at the same time. ``build``: the release that packs. Files below ``minimum_bytes`` are packed as quickly
    as read; those from ``map_from_bytes`` on are mapped, smaller ones copied to huge pages. ``limit_bytes``: of all files together.
    """

    source: Path
    source_fingerprint: str
    weights: str
    variant: str = ""
    build: str = ""
    directory: Path = field(default_factory=lambda: cache_directory() / "packed")
    limit_bytes: int = LIMIT_BYTES
    map_from_bytes: int = MAP_FROM_BYTES
    minimum_bytes: int = MINIMUM_BYTES
    _writer: threading.Thread | None = field(default=None, init=False, repr=False)
    _draft: _Draft | None = field(default=None, init=False, repr=False)

    def path(self, layout: PackedLayout) -> Path:
        return self.directory / f"{hashlib.sha256(self._header(layout)).hexdigest()[:32]}{SUFFIX}"

    def open(self, layout: PackedLayout) -> Region | None:
        """The packed weights, or ``None`` when they are not here. A file that is damaged is removed."""
        path = self.path(layout)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("packed weights in %s cannot be read: %s", path, error)
            return None
        try:
            fault = self._fault(layout, path, descriptor)
            if fault is None:
                region = self._read(layout, descriptor)
                with contextlib.suppress(OSError):
                    os.utime(path.with_suffix(RECORD_SUFFIX))  # last used
                return region
        except OSError as error:
            fault = str(error)
        finally:
            os.close(descriptor)
        logger.warning("packed weights in %s are damaged (%s): packing again", path, fault)
        _remove(path)
        return None

    def begin(self, layout: PackedLayout) -> Region:
        """Memory to pack into: a file's own pages for a large model, so that it is never held twice. Raises ``MemoryError``."""
        if self.map_from_bytes <= layout.num_bytes and self._wanted(layout):
            try:
                self._draft = self._new_draft(layout)
                size = self._num_bytes(layout)
                return Region(_native.Memory.of_file(self._draft.descriptor, size, True), len(self._header(layout)), mapped=True)
            except OSError as error:
                self.abandon()
                self._warn_unwritten(error)
        return Region.anonymous(layout)

    def abandon(self) -> None:
        """Packing failed: nothing of it stays."""
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def finish(self, layout: PackedLayout, region: Region) -> None:
        """Everything is packed: it is written by a thread, for which the interpreter waits when it ends."""
        if not self._wanted(layout):
            return
        self._writer = threading.Thread(target=self._publish, args=(layout, region), name="octavo-packed-weights")
        self._writer.start()

    def wait(self) -> None:
        """Until what ``finish`` began is on disk, or has failed."""
        if self._writer is not None:
            self._writer.join()

    def _wanted(self, layout: PackedLayout) -> bool:
        return self.minimum_bytes <= layout.num_bytes and self._num_bytes(layout) <= self.limit_bytes

    def _header(self, layout: PackedLayout) -> bytes:
        text = json.dumps({"weights": self.weights, "build": self.build, "layout": layout.identity}).encode()
        header = _MAGIC + len(text).to_bytes(8, "little") + text
        return header.ljust(round_up(len(header), PAGE), b"\0")

    def _num_bytes(self, layout: PackedLayout) -> int:
        return len(self._header(layout)) + layout.num_bytes + _DIGEST_BYTES

    def _fault(self, layout: PackedLayout, path: Path, descriptor: int) -> str | None:
        """What is wrong with a file, if anything is."""
        header, size = self._header(layout), self._num_bytes(layout)
        status = os.fstat(descriptor)
        if status.st_size != size:
            return f"it has {status.st_size} bytes instead of {size}"
        if os.pread(descriptor, len(header), 0) != header:
            return "its header is not that of these weights"
        if _recorded(path).get("identity") == _identity(status):
            return None
        digest, position, end = hashlib.sha256(), len(header), size - _DIGEST_BYTES
        while position < end:
            chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - position), position)
            if not chunk:
                return "it ends early"
            digest.update(chunk)
            position += len(chunk)
        if os.pread(descriptor, _DIGEST_BYTES, end) != digest.digest():
            return "its bytes are not those that were written"
        self._record(path, status)
        return None

    def _read(self, layout: PackedLayout, descriptor: int) -> Region:
        base = len(self._header(layout))
        if layout.num_bytes >= self.map_from_bytes:
            return Region(_native.Memory.of_file(descriptor, self._num_bytes(layout), False), base, mapped=True)
        region = Region.anonymous(layout)
        view = region.bytes(layout).data
        position = 0
        while position < len(view):
            count = os.preadv(descriptor, [view[position : position + _CHUNK_BYTES]], base + position)
            if count == 0:
                raise OSError("it ends early")
            position += count
        return region

    def _new_draft(self, layout: PackedLayout) -> _Draft:
        """An empty file with all its space, so that writing to its pages cannot fail. Raises ``OSError``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sweep()
        descriptor, path = tempfile.mkstemp(dir=self.directory, prefix=".", suffix=DRAFT_SUFFIX)
        draft = _Draft(path, descriptor)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, self._num_bytes(layout))
            _write(descriptor, self._header(layout), 0)
        except BaseException:
            draft.discard()
            raise
        return draft

    def _publish(self, layout: PackedLayout, region: Region) -> None:
        path = self.path(layout)
        try:
            draft = self._draft = self._draft or self._new_draft(layout)
            base, data = len(self._header(layout)), region.bytes(layout).data
            digest = hashlib.sha256()
            for begin in range(0, len(data), _CHUNK_BYTES):
                chunk = data[begin : begin + _CHUNK_BYTES]
                digest.update(chunk)
                if not region.mapped:
                    _write(draft.descriptor, chunk, base + begin)
            _write(draft.descriptor, digest.digest(), base + len(data))
            os.fsync(draft.descriptor)
            os.replace(draft.path, path)
            self._record(path, os.fstat(draft.descriptor))
            os.close(draft.descriptor)
            self._draft = None
            self._make_room(path)
        except OSError as error:
            self._warn_unwritten(error)
            self.abandon()

    def _warn_unwritten(self, error: OSError) -> None:
        logger.warning("packed weights cannot be kept in %s, so the next start packs them again: %s", self.directory, error)

    def _record(self, path: Path, status: os.stat_result) -> None:
        record = {
            "source": str(self.source),
            "source_fingerprint": self.source_fingerprint,
            "variant": self.variant,
            "bytes": status.st_size,
            "identity": _identity(status),
        }
        with contextlib.suppress(OSError, UnicodeError):  # then it is hashed next time
            write_atomically(path.with_suffix(RECORD_SUFFIX), json.dumps(record, indent=1).encode())

    def _make_room(self, kept: Path) -> None:
        """Removes what this file supersedes, then the least recently used until the limit is kept."""
        files: list[tuple[float, int, Path]] = []
        for path in self.directory.glob(f"*{SUFFIX}"):
            record = _recorded(path)
            if path != kept and (self._superseded(record) or _orphaned(path, record)):
                _remove(path)
                continue
            with contextlib.suppress(OSError):
                files.append((_last_used(path), path.stat().st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit_bytes:
                break
            if path != kept:
                _remove(path)
                total -= size

    def _superseded(self, record: dict[str, Any]) -> bool:
        if record.get("source") != str(self.source):
            return False
        return record.get("source_fingerprint") != self.source_fingerprint or record.get("variant") == self.variant

    def _sweep(self) -> None:
        """Removes drafts whose writers have gone."""
        for path in self.directory.glob(f".*{DRAFT_SUFFIX}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime < _ABANDONED_S:
                    continue
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def forget_packed(source: Path, directory: Path | None = None) -> int:
    """Removes what was packed from the model at ``source``, or from any model below it if it is a directory. Returns the bytes freed."""
    source, freed = source.resolve(), 0
    for path in (directory or cache_directory() / "packed").glob(f"*{SUFFIX}"):
        origin = _recorded(path).get("source")
        if isinstance(origin, str) and Path(origin).is_relative_to(source):
            with contextlib.suppress(OSError):
                freed += path.stat().st_size
            _remove(path)
    return freed


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _recorded(path: Path) -> dict[str, Any]:
    """The JSON beside a packed file; empty when there is none that can be read."""
    try:
        record = json.loads(path.with_suffix(RECORD_SUFFIX).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _orphaned(path: Path, record: dict[str, Any]) -> bool:
    source = record.get("source")
    with contextlib.suppress(OSError):
        gone = not isinstance(source, str) or not os.path.exists(source)
        return gone and time.time() - _last_used(path) > _ORPHANED_S
    return False


def _last_used(path: Path) -> float:
    record = path.with_suffix(RECORD_SUFFIX)
    return max(path.stat().st_mtime, record.stat().st_mtime if record.exists() else 0.0)


def _remove(path: Path) -> None:
    for name in (path, path.with_suffix(RECORD_SUFFIX)):
        with contextlib.suppress(OSError):
            name.unlink()


def _write(descriptor: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
