"""``Protocol``: uvicorn's HTTP/1.1 over llhttp, with limits on what comes before a body, and errors in the API's words there, too.

What is no HTTP at all never reaches the application. Here it is answered like every other bad request; a head may have only so many
bytes and so much time; there may be only so many connections at once (uvicorn's ``limit_concurrency``); and nonsense behind a good
request (a body longer than its ``Content-Length``) does not spoil that one's answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from octavo.server.errors import APIError

logger = logging.getLogger("octavo.server")

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers. One read from the socket more may be held before a single longer header is noticed."""
HEAD_S = 30.0
"""Time for a head that has begun, and for the first one of a connection."""

SPARE_CONNECTIONS = 32
"""So many beyond the limit are told why they are not served; more are closed without a word."""

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        """Of the parts that are whole."""
        self._unfinished_bytes = 0
        """Of the reads after which the head was still not whole."""
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._deaf = False
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None  # what uvicorn would answer is no JSON
        self._surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._max_connections is not None:
            surplus = len(self.connections) - self._max_connections
            self._surplus = surplus > 0
            if surplus > SPARE_CONNECTIONS:
                self._deaf = True
                transport.abort()
                return
        self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        if self._surplus:
            self._refuse(_too_many_connections(self._max_connections))
            return
        if (self.cycle is None or not self.cycle.more_body) and _UPGRADE.search(data, 0, MAX_HEAD_BYTES):
            data = _without_upgrade(data)
        super().data_received(data)
        if self._in_head and not self._deaf and not self.transport.is_closing():  # a head longer than one read: rare
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._unfinished_bytes = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if self._deaf and was_last:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's complaint is being handled."""
        error = sys.exc_info()[1]
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, APIError):
            self._refuse(cause)
            return
        known = isinstance(cause, httptools.HttpParserError) and str(cause)
        detail = str(cause) if known else "the request line or a header cannot be read"
        self._refuse(APIError(400, f"the request is not valid HTTP/1.1: {detail}", code="invalid_http"))

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    def _refuse(self, error: APIError) -> None:
        """Answers with ``error`` and ends the connection, after the answer that is still under way, if any."""
        self._deaf = True
        self._stop_timer()
        cycle = self.cycle
        if self.pipeline:
            if cycle.more_body:
                self.pipeline.popleft()  # the newest, of which no more will come
            return
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            return
        logger.info("refused before it was a request: %s", error.message.encode("unicode_escape").decode("ascii"))
        body = error.body()
        head = STATUS_LINE[error.status] + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
        head += b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in error.headers.items())
        self.transport.write(head + b"\r\n" + body)
        self.transport.close()

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self._deaf:
            return
        if self._unfinished_bytes:
            self._refuse(APIError(408, f"the headers did not end within {HEAD_S:.0f} s", code="request_timeout"))
        else:  # a connection that was opened in advance
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _without_upgrade(data: bytes) -> bytes:
    """``data``, which begins with a head, without the offer of another protocol: it is declined by being ignored (RFC 9110, 7.8), but
    llhttp would take what follows for that protocol, and a POST (Java's client always offers HTTP/2) would lose its body."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        end = len(data)
    return _UPGRADE.sub(b"\r\nx-declined:", data[:end]) + data[end:]


def _too_many_connections(most: int | None) -> APIError:
    message = f"the server has {most} connections, as many as it takes; try again later"
    return APIError(503, message, code="too_many_connections", headers={"Retry-After": "1"})


def _head_too_large() -> APIError:
    return APIError(431, f"the request line and headers have more than {MAX_HEAD_BYTES} bytes", code="headers_too_large")
