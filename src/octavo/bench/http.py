"""A small HTTP/1.1 client over asyncio and ``httptools``: one request a connection, the body as it arrives, with the moment of each piece.

A benchmark's client shares the cores with the server that it measures, so it parses in C and does nothing else per piece.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

_PIECE_BYTES = 1 << 18


class HTTPFault(Exception):
    """What went wrong between us and the server, in one line that is the same for the same fault."""


class Refusal(HTTPFault):
    """The server answered with an error: ``status`` and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}" if said else f"HTTP {status}")
        self.status = status
        self.said = said


@dataclass(frozen=True)
class Server:
    """``base_url`` up to the version, such as ``http://127.0.0.1:8000/v1``; a URL without a path is given ``/v1``."""

    base_url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
            raise ValueError(f"--base-url {self.base_url!r} is invalid: write it like http://127.0.0.1:8000/v1")

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.base_url.startswith("https:") else None

    def path(self, endpoint: str) -> str:
        return (urlsplit(self.base_url).path.rstrip("/") or "/v1") + endpoint

    def head(self, method: str, endpoint: str, body: bytes) -> bytes:
        lines = [
            f"{method} {self.path(endpoint)} HTTP/1.1",
            f"Host: {urlsplit(self.base_url).netloc.rpartition('@')[2]}",
            "Accept: text/event-stream, application/json",
            "Connection: close",
        ]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class _Parsing:
    """What ``httptools`` tells while it is fed."""

    pieces: list[bytes] = field(default_factory=list)
    headers: bool = False
    framed: bool = False
    """Whether the answer says where it ends; an HTTP/1.0 one may end when the connection does."""
    done: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        self.headers = True

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.done = True


@dataclass
class Answer:
    status: int
    _reader: asyncio.StreamReader
    _parser: Any
    _parsing: _Parsing
    _moment_s: float

    async def pieces(self) -> AsyncIterator[tuple[float, bytes]]:
        """(moment of ``time.perf_counter``, bytes of the body). Raises ``HTTPFault`` if the body ends before its end."""
        while True:
            if self._parsing.pieces:
                data = b"".join(self._parsing.pieces)
                self._parsing.pieces.clear()
                yield self._moment_s, data
            if self._parsing.done:
                return
            data = await self._reader.read(_PIECE_BYTES)
            self._moment_s = time.perf_counter()
            if not data:
                if not self._parsing.framed:
                    return
                raise HTTPFault("the server closed the connection in the middle of its answer")
            _feed(self._parser, data)

    async def body(self) -> bytes:
        return b"".join([data async for _, data in self.pieces()])


def _feed(parser: Any, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserError as error:
        raise HTTPFault(f"the answer is not HTTP: {error}") from error


@asynccontextmanager
async def request(server: Server, method: str, endpoint: str, payload: Any = None) -> AsyncIterator[Answer]:
    """An answer with its head read, whatever its status. Raises ``HTTPFault``. Leaving closes the connection."""
    body = b"" if payload is None else json.dumps(payload).encode()
    try:
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=server.tls, limit=_PIECE_BYTES)
    except OSError as error:
        raise HTTPFault(f"no connection: {error.strerror or type(error).__name__}") from error
    parsing = _Parsing()
    parser = httptools.HttpResponseParser(parsing)
    try:
        writer.write(server.head(method, endpoint, body) + body)
        await writer.drain()
        moment_s = time.perf_counter()
        while not parsing.headers:
            data = await reader.read(_PIECE_BYTES)
            moment_s = time.perf_counter()
            if not data:
                raise HTTPFault("the server closed the connection without an answer")
            _feed(parser, data)
        yield Answer(parser.get_status_code(), reader, parser, parsing, moment_s)
    except (ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise HTTPFault(f"the connection broke: {type(error).__name__}") from error
    finally:
        writer.close()


def what_it_said(body: bytes) -> str:
    """The message out of an error's body, in one line of at most 200 characters."""
    text = body.decode(errors="replace")
    try:
        found: Any = json.loads(text)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        text = found if isinstance(found, str) else json.dumps(found)
    except json.JSONDecodeError:
        pass
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:199] + "…"


async def get_json(server: Server, endpoint: str) -> Any:
    """Raises ``HTTPFault``."""
    async with request(server, "GET", endpoint) as answer:
        body = await answer.body()
    if answer.status != 200:
        raise Refusal(answer.status, what_it_said(body))
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise HTTPFault(f"{endpoint} is not JSON") from error
