"""Fingerprints of weight files: the SHA-256 of every byte, remembered as long as the file is untouched.

Persistent KV blocks and packed weights are only as good as their identity, so the digest covers the whole
file, not a sample. Hashing 100 MB costs 50 ms with SHA instructions and five times that without, a 4 GB file seconds;
the digest is therefore kept in the cache directory under the file's path and believed only while size, device, inode,
modification and change time are what they were. The change time cannot be set by a user's program, which catches tools that
restore the modification time after writing. A file changed within the last two seconds is not remembered: a
second write could fall into the same tick of the file system's clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from octavo.weights.cache import cache_directory, write_atomically

FINGERPRINT_DIGITS = 32
_RACY_NS = 2_000_000_000
_DIGEST = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")


def file_fingerprint(path: Path, contents: memoryview, status: os.stat_result) -> str:
    """The first 32 hex digits of the SHA-256 of ``contents``, the bytes of the file at ``path``.

    ``status`` is ``fstat`` of the descriptor that ``contents`` maps, taken before mapping. A cache directory that
    cannot be read or written costs time, never an error.
    """
    resolved = path.resolve()
    identity: list[str | int] = [str(resolved), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    name = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:FINGERPRINT_DIGITS]
    record = cache_directory() / "fingerprints" / f"{name}.json"
    remembered = _recall(record, identity)
    if remembered is not None:
        return remembered
    digest = hashlib.sha256(contents).hexdigest()[:FINGERPRINT_DIGITS]
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _RACY_NS:
        with contextlib.suppress(OSError, UnicodeError):  # read-only home, full disk: computed again next time
            write_atomically(record, json.dumps({"identity": identity, "fingerprint": digest}).encode())
    return digest


def _recall(record: Path, identity: list[str | int]) -> str | None:
    try:
        saved = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(saved, dict) or saved.get("identity") != identity:
        return None
    digest = saved.get("fingerprint")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None
