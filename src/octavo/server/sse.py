"""Server-sent events, and the watch over clients that leave.

``EventStream`` sends what an async iterator of encoded events yields. Headers wait a moment for the first event, so that a request
the engine refuses at once is still an ordinary HTTP error; a stream that is silent for long gets a comment, so that proxies keep it
open. ``finish_or_leave`` is the one place that ends work early: when the client disconnects or the server closes, the
work is cancelled, and with it the engine's request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.errors import APIError, shutting_down

logger = logging.getLogger("octavo.server")

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent."""
PATIENCE_S = 1.0
"""How long the headers wait for the first event."""

STATUS_CLIENT_LEFT = 499
"""Logged, never seen: the client left before its answer (the number is nginx's)."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def finish_or_leave(work: asyncio.Task[Any], receive: Receive, closing: asyncio.Future[None]) -> Literal["done", "left", "closing"]:
    """Wait until ``work`` is done; cancel it, and wait for that, if the client leaves or ``closing`` is set first."""
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((work, watch, closing), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return "done"
        return "left" if watch.done() else "closing"
    finally:
        watch.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))


async def answer(work: Awaitable[Response], receive: Receive, closing: asyncio.Future[None]) -> Response:
    """The response that ``work`` makes, or an empty one if nobody is there to read it. Raises ``APIError`` 503 if the server closes."""
    task = asyncio.ensure_future(work)
    outcome = await finish_or_leave(task, receive, closing)
    if outcome == "done":
        return task.result()
    if outcome == "left":
        return Response(status_code=STATUS_CLIENT_LEFT)
    raise shutting_down()


class EventStream(Response):
    """Streams ``events``, each one or more whole server-sent events; the iterator is always closed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], closing: asyncio.Future[None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._closing = closing
        self._started = False
        self._last_sent_s = 0.0
        self._comment: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        self._timer = loop.call_later(PATIENCE_S, self._on_timer, send)
        work = loop.create_task(self._pump(send))
        try:
            outcome = await finish_or_leave(work, receive, self._closing)
        finally:
            self._timer.cancel()
            if self._comment is not None:
                self._comment.cancel()
            await self._events.aclose()
        if outcome == "left":
            if not self._started:  # for the log only
                await self._start(send, STATUS_CLIENT_LEFT)
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            if outcome == "closing":
                raise shutting_down()
            work.result()
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, APIError):
                logger.exception("a stream failed")
                error = APIError(500, "internal error; the server's log has the details", code="internal_error")
            await self._write(send, b"data: " + error.body() + b"\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def _pump(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        async for data in self._events:
            if self._comment is not None or not self._started:
                await self._write(send, data)
            else:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_sent_s = time()

    async def _write(self, send: Send, data: bytes) -> None:
        if self._comment is not None:
            await asyncio.wait((self._comment,))
            self._comment = None
        if not self._started:
            await self._start(send, self.status_code)
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self, send: Send, status: int) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})

    def _on_timer(self, send: Send) -> None:
        """Look every ``KEEP_ALIVE_S`` whether the stream has been silent; cheaper than a timeout around every event."""
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - self._last_sent_s
        wait_s = KEEP_ALIVE_S
        if not self._started or silent_s >= KEEP_ALIVE_S:
            self._comment = loop.create_task(self._send_comment(send))
        else:
            wait_s = KEEP_ALIVE_S - silent_s
        self._timer = loop.call_later(wait_s, self._on_timer, send)

    async def _send_comment(self, send: Send) -> None:
        if not self._started:
            await self._start(send, self.status_code)
        await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        self._last_sent_s = asyncio.get_running_loop().time()
