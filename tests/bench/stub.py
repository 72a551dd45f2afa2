"""A server that speaks just enough of the OpenAI API to be odd in it. The name of the model that is asked for names the oddity."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKEN_S = 0.004
"""Between two tokens."""


class Stub:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.port = 0
        self.under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        self.headers.append(head)
        self.under_way += 1
        try:
            if head.startswith("GET /v1/models"):
                await self._plain(writer, 200, {"data": [{"id": "plain"}]})
            else:
                self.asked.append(body)
                await getattr(self, body["model"])(writer, body)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.under_way -= 1
            writer.close()

    async def _plain(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, pieces: list[bytes], *, gap_s: float = TOKEN_S, end: bool = True) -> None:
        """Each piece a chunk of its own."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(gap_s)
        if end:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    def _event(
        self, body: dict[str, Any], text: str, *, index: int = 0, finish: str | None = None, delta: Any = None, **more: Any
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        if "messages" in body:
            choice["delta"] = {"content": text} if delta is None else delta
        else:
            choice["text"] = text
        return f"data: {json.dumps({'choices': [choice], **more})}\n\n".encode()

    def _tokens(self, body: dict[str, Any], *, finish: str = "length") -> list[bytes]:
        count = body["max_tokens"] if "max_tokens" in body else body["max_completion_tokens"]
        return [*(self._event(body, f" t{i}") for i in range(count)), self._event(body, "", finish=finish)]

    def _usage(self, prompt: int, output: int, cached: int | None = None) -> bytes:
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output}
        if cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()

    DONE = b"data: [DONE]\n\n"

    # -- models ---------------------------------------------------------------------------------------------

    async def plain(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        count = body.get("max_tokens", 0)
        await self._stream(writer, [*self._tokens(body), self._usage(11, count, cached=3), self.DONE])

    async def several_tokens_an_event(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Two tokens an event; the second token of the first pair makes half a character."""
        pieces = [self._event(body, " a b") for _ in range(body["max_tokens"] // 2)]
        await self._stream(writer, [*pieces, self._event(body, "", finish="length"), self._usage(7, body["max_tokens"]), self.DONE])

    async def events_in_one_piece(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """As over a slow network, or from a server that waits: all of it at once."""
        await self._stream(writer, [b"".join([*self._tokens(body, finish="stop"), self.DONE])])

    async def no_usage(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, [*self._tokens(body)[1:], self.DONE])

    async def stops_early(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, [self._event(body, " one"), self._event(body, " two"), self._event(body, "", finish="stop"), self.DONE])

    async def other_line_ends(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """CRLF, comments, fields, data without a space, cut at every byte."""
        text = b": hello\r\n\r\nevent: x\r\nid: 4\r\n" + b"".join([*self._tokens(body), self._usage(5, body["max_tokens"]), self.DONE])
        text = text.replace(b"\n", b"\r\n").replace(b"\r\r\n", b"\r\n").replace(b"data: ", b"data:")
        await self._stream(writer, [text[i : i + 1] for i in range(len(text))], gap_s=0)

    async def without_end(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """HTTP/1.0: it ends when the connection does; no [DONE], and the last event lacks its empty line."""
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b"".join([*self._tokens(body), self._usage(5, body["max_tokens"])])[:-2])
        await writer.drain()

    async def branches(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        n, count = body["n"], body["max_tokens"]
        pieces = [self._event(body, f" {i}", index=b) for i in range(count) for b in reversed(range(n))]
        pieces += [self._event(body, "", index=b, finish="length") for b in range(n)]
        await self._stream(writer, [*pieces, self._usage(9, n * count), self.DONE], gap_s=TOKEN_S / n)

    async def branches_with_usage_each(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """As llama-server does: a branch ends with its own count, in an event that follows, and there is no count of all."""
        n, count = body["n"], body["max_tokens"]
        pieces = [self._event(body, f" {i}", index=b) for i in range(count) for b in range(n)]
        for b in range(n):
            pieces += [self._event(body, "", index=b, finish="length"), self._usage(9, count)]
        await self._stream(writer, [*pieces, self.DONE], gap_s=TOKEN_S / n)

    async def thinks_first(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """A role that is no token, and a while later thoughts that are."""
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        role = self._event(body, "", delta={"role": "assistant", "content": ""})
        writer.write(b"%x\r\n%s\r\n" % (len(role), role))
        await writer.drain()
        await asyncio.sleep(0.05)
        count = body["max_tokens"]
        pieces = [self._event(body, "", delta={"reasoning_content": "hm"}), self._event(body, "", delta={"content": ""})]
        pieces += [self._event(body, " x") for _ in range(count - 2)]
        rest = b"".join([*pieces, self._event(body, "", finish="length", delta={}), self._usage(5, count), self.DONE])
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest))
        await writer.drain()

    async def strict(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Refuses what is not OpenAI's, by name, and the old name of the limit."""
        for name in ("ignore_eos", "max_tokens"):
            if name in body:
                await self._plain(writer, 400, {"error": {"message": f"Unrecognized request argument supplied: {name}"}})
                return
        await self._stream(writer, [*self._tokens(body), self._usage(5, body["max_completion_tokens"]), self.DONE])

    async def vague(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if "stream_options" in body:
            await self._plain(writer, 422, {"detail": "extra fields not permitted"})
            return
        await self._stream(writer, [*self._tokens(body), self.DONE])

    async def busy(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._plain(writer, 503, {"error": {"message": "overloaded,\n try later"}})

    async def fails_after_some(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """The probe, the warm-up and two more are answered."""
        answered = sum(asked["model"] == "fails_after_some" for asked in self.asked) <= 4
        await (self.plain if answered else self.busy)(writer, body)

    async def page(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._plain(writer, 502, "<html>" + "bad gateway " * 100)

    async def too_long(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._plain(writer, 400, {"error": {"message": "the prompt is longer than the context"}})

    async def fails_midway(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, [self._event(body, " a"), b'data: {"error": {"message": "out of blocks"}}\n\n'])

    async def breaks_off(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, self._tokens(body)[:2], end=False)

    async def ends_too_soon(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, self._tokens(body)[:2])

    async def hangs_up(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        return

    async def says_nothing(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, [self._event(body, "", finish="stop"), self._usage(5, 0), self.DONE])

    async def babbles(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await self._stream(writer, [b"data: {oops\n\n"])

    async def is_no_web_server(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await writer.drain()

    async def sleeps(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        await asyncio.sleep(2)

    async def stalls(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Streams of a token every 4 ms; while a long prompt's 100 ms pass, every 12 ms."""
        if body["max_tokens"] == 1:
            self.gap_s = 3 * TOKEN_S
            await asyncio.sleep(0.3)
            self.gap_s = TOKEN_S
            await self._stream(writer, [*self._tokens(body), self._usage(5, 1), self.DONE], gap_s=0)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in [*self._tokens(body), self.DONE]:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(self.gap_s)
        writer.write(b"0\r\n\r\n")

    gap_s = TOKEN_S


@contextmanager
def stub_server() -> Iterator[Stub]:
    """In a thread of its own, on a free port."""
    stub = Stub()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(stub.handle, "127.0.0.1", 0)
        stub.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await asyncio.Event().wait()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(serve())
        except RuntimeError:  # stopped
            pass
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
