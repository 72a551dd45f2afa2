"""HTTP servers on the loopback address for the tests of downloads: files with ranges and versions, faults, a model hub's two requests."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GGUF = b"GGUF" + random.Random(0).randbytes(3_000_000)
"""Passes for a model: only its beginning is looked at."""


def files_in(cache: Path) -> list[str]:
    """Every file of the models in the cache but locks."""
    return sorted(str(p.relative_to(cache / "models")) for p in (cache / "models").rglob("*") if p.is_file() and p.name != ".lock")


class Reports(list[tuple[int, int]]):
    """A progress callback that keeps what it was told."""

    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))

    def check(self, total: int) -> None:
        """It ended with all of ``total`` bytes, and never fell back or repeated itself."""
        assert self[-1] == (total, total)
        assert [done for done, _ in self] == sorted({done for done, _ in self})


@dataclass
class Site:
    """What a server has (path → bytes) and does. ``requests``: (method, path, Range header) as they came."""

    files: dict[str, bytes]
    version: str | None = '"v1"'
    ranges: bool = True
    length: bool = True
    cut: list[int] = field(default_factory=list)
    """Of each answer to come: after how many bytes of the body the connection ends."""
    withheld: set[str] = field(default_factory=set)
    """Paths that the hub lists and does not serve."""
    statuses: list[int] = field(default_factory=list)
    """Of each answer to come: what is answered instead of the file (0: the file)."""
    redirects: dict[str, str] = field(default_factory=dict)
    hub: dict[str, Any] | None = None
    """{"repository": …, "commit": …}: ``files`` are then that repository's."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        site = self.site
        path = urlsplit(self.path).path
        site.requests.append((self.command, self.path, self.headers.get("Range")))
        site.headers.append(dict(self.headers.items()))
        status = site.statuses.pop(0) if site.statuses else 0
        if status:
            return self._send(status, b"no", {})
        if path in site.redirects:
            return self._send(302, b"", {"Location": site.redirects[path]})
        extra: dict[str, str] = {}
        if site.hub is not None:
            repository, commit = site.hub["repository"], site.hub["commit"]
            if re.fullmatch(rf"/api/models/{repository}(/revision/[^/]+)?", path):
                return self._send(200, json.dumps(self._model_info(commit)).encode(), {"Content-Type": "application/json"})
            path = path.removeprefix(f"/{repository}/resolve/{commit}")
            extra = {"X-Repo-Commit": commit}
        data = None if path in site.withheld else site.files.get(path)
        if data is None:
            return self._send(404, b"no such file", {"X-Error-Code": "EntryNotFound"} if site.hub else {}, body)
        version = f'"{hashlib.sha256(data).hexdigest()}"' if site.hub else site.version
        if version is not None:
            extra["ETag"] = version
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and site.ranges and self.headers.get("If-Range", version) == version:
            start = int(asked[1])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], extra, body)
        return self._send(200, data, extra, body)

    def _model_info(self, commit: str) -> dict[str, Any]:
        site = self.site
        assert site.hub is not None
        siblings = []
        for path, data in site.files.items():
            sibling: dict[str, Any] = {"rfilename": path[1:], "size": len(data), "blobId": "0" * 40}
            if path.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {
                    "sha256": site.hub.get("sha256") or hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                }
            siblings.append(sibling)
        return {
            "id": site.hub["repository"],
            "modelId": site.hub["repository"],
            "sha": commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.site.length or status != 200:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if not body:
            return
        end = self.site.cut.pop(0) if self.site.cut and status in (200, 206) else len(data)
        self.wfile.write(data[:end])
        if end < len(data):
            self.close_connection = True


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serves ``site`` on a free port of the loopback address; sets its ``url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
