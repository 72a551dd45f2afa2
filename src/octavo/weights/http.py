"""``https://…/NAME.gguf``: a model file by HTTP, resumed where it broke off, checked, and moved to its place when it is whole.

An interrupted download stays beside the model's place with what the server called that version of the file (its ETag or date of
change), and is continued by the next attempt with ``Range`` and ``If-Range`` (RFC 9110, section 14 and 13.1.5) if it still is that version.
A server that names no version is trusted to continue only if a SHA-256 was given. The parts of a split model are fetched together.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from octavo.weights.gguf_model import part_names
from octavo.weights.specification import URLSpecification
from octavo.weights.store import Fetched, Progress, ProgressCallback, PullError, check_space, fetch_into, put

ATTEMPTS = 5
"""In a row without a byte gained; between them it waits 1, 2, 4 … times ``RETRY_S``."""
RETRY_S = 0.5
TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


def fetch_from_url(specification: URLSpecification, on_progress: ProgressCallback | None) -> Path:
    """Where the model lies, fetched if it is not in the cache. Raises ``PullError``; what was downloaded is continued next time."""

    def work(directory: Path, lock: int | None, progress: Progress) -> Fetched:
        return _fetch(specification, directory, progress)

    return fetch_into(specification.folder, specification.name, work, on_progress)


def _fetch(specification: URLSpecification, directory: Path, progress: Progress) -> Fetched:
    names = part_names(specification.file_name) or [specification.file_name]
    if specification.sha256 is not None and len(names) > 1:
        raise PullError(
            f"{specification.name} is one of {len(names)} parts of a model, whose digest cannot be that of one part: leave it out"
        )
    done_bytes = 0
    for number, name in enumerate(names):
        url = urllib.parse.urljoin(specification.url, urllib.parse.quote(name)) if len(names) > 1 else specification.url
        query = urllib.parse.urlsplit(specification.url).query
        download = _Download(url + (f"?{query}" if query and len(names) > 1 else ""), directory / name, specification.sha256)
        if not download.target.exists():

            def on_bytes(done: int, total: int, before: int = done_bytes, others: int = len(names) - number - 1) -> None:
                progress.total_bytes = max(progress.total_bytes, before + total * (1 + others))  # as if all parts were alike
                progress(before + done)

            download.run(on_bytes)
        done_bytes += download.target.stat().st_size
    progress.total_bytes = max(done_bytes, progress.total_bytes)
    return Fetched(tuple(names), names[0])


class _Download:
    """One file on its way to ``target``; ``.NAME.download`` holds what there is of it, ``.NAME.json`` which version that is."""

    def __init__(self, url: str, target: Path, sha256: str | None) -> None:
        self.url = url
        self.target = target
        self._sha256 = sha256
        self._partial = target.with_name(f".{target.name}.download")
        self._record = target.with_name(f".{target.name}.json")

    def run(self, on_bytes: Callable[[int, int], None]) -> None:
        failures = 0
        while True:
            size = self._size()
            try:
                self._continue(on_bytes)
                break
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _TRANSIENT:
                    raise PullError(f"{self.url} answers {error.code} {error.reason}") from None
                problem: Exception = error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                problem = error
            failures = 0 if self._size() > size else failures + 1
            if failures >= ATTEMPTS:
                raise PullError(
                    f"{self.url} could not be downloaded: {problem}; the next attempt continues at {self._size()} bytes"
                ) from problem
            time.sleep(RETRY_S * 2**failures)
        self._finish()

    def _continue(self, on_bytes: Callable[[int, int], None]) -> None:
        """Downloads the rest, or everything if the file on the server is no longer the one it began with."""
        offset, version = self._resumable()
        headers = {"User-Agent": "octavo", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            response = _open(urllib.request.Request(self.url, headers=headers))
        except urllib.error.HTTPError as error:
            if error.code != 416 or not offset:
                raise
            error.close()
            match = _CONTENT_RANGE.fullmatch(error.headers.get("Content-Range", ""))
            if match and match["total"] == str(offset):
                return  # it was whole already
            self.discard()
            raise http.client.HTTPException("the server has less than was downloaded before") from None
        with response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise PullError(f"{self.url} answers in the encoding {response.headers['Content-Encoding']}, which was not asked for")
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else 0
            if response.status == 206:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if match is None or match["start"] != str(offset):
                    self.discard()
                    raise http.client.HTTPException("the server continues at another place than it was asked to")
                total = int(match["total"]) if match["total"] != "*" else total + offset
            else:
                offset = 0
            check_space(self.target.parent, self.url, total - offset)
            if not offset:
                self._partial.unlink(missing_ok=True)
                self._record.write_text(json.dumps({"url": self.url, "version": _version(response.headers)}))
            with open(self._partial, "ab") as file:
                done = _copy(response, file, offset, lambda done: on_bytes(done, total))
            if done < total:
                raise http.client.HTTPException(f"the connection ended after {done} of {total} bytes")

    def _resumable(self) -> tuple[int, str]:
        """(bytes that can be kept, the version they are of)."""
        try:
            record = json.loads(self._record.read_bytes())
            version = record["version"]
            if record["url"] == self.url and isinstance(version, str) and (version or self._sha256):
                return self._size(), version
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return 0, ""

    def _size(self) -> int:
        try:
            return self._partial.stat().st_size
        except OSError:
            return 0

    def _finish(self) -> None:
        """Checks the file and moves it to its place, or discards it."""
        with open(self._partial, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest() if self._sha256 else None
        if digest != self._sha256:
            self.discard()
            raise PullError(f"{self.url} has the SHA-256 {digest}, not the expected {self._sha256}; nothing was kept")
        if magic != b"GGUF":
            self.discard()
            raise PullError(f"{self.url} is not a GGUF file: it begins with {magic!r}; nothing was kept")
        put(self._partial, self.target)
        self._record.unlink(missing_ok=True)

    def discard(self) -> None:
        for path in (self._partial, self._record):
            path.unlink(missing_ok=True)


def _copy(response: IO[bytes], file: IO[bytes], offset: int, on_bytes: Callable[[int], None]) -> int:
    """Returns the size of the file afterwards."""
    done = offset
    on_bytes(done)
    while chunk := response.read(_CHUNK_BYTES):
        file.write(chunk)
        done += len(chunk)
        on_bytes(done)
    return done


def _version(headers: Any) -> str:
    """What ``If-Range`` may be given: a strong entity tag, or else the date of change; "" if there is neither."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(headers.get("Last-Modified", ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme not in (("https",) if req.type == "https" else ("http", "https")):
            raise PullError(f"{req.full_url} redirects to {newurl}, which is less safe and not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
