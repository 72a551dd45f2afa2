"""Bodies, from the socket to a validated model. They are read here rather than by FastAPI, so that every fault in one (its size, its
type, its encoding, a field) is answered in the OpenAI API's words."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from octavo.server.errors import APIError, from_validation
from octavo.server.sse import STATUS_CLIENT_LEFT

SILENCE_S = 30.0
"""How long a body may pause; a ``Content-Length`` that promises more than is sent ends here."""

BODY_S = 300.0
"""How long a body may take in all, however steadily it drips."""

MAX_VALUES = 1 << 20
MAX_FIELDS = 100_000
"""Values (token ids, above all) and fields in one body, counted before it is parsed by its commas and brackets, and its colons; those in
strings count, too. More of them would keep the event loop, and every stream, for longer than half a second."""

_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)")

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, model: type[T], max_bytes: int) -> T:
    """The validated body. Raises ``APIError``: 408 stopped coming, 413 too large, 415 not JSON by its headers, 400 anything else."""
    return parse(await read_raw(request, max_bytes), model)


def parse(raw: bytes, model: type[T]) -> T:
    """Raises ``APIError`` 400 for what is no ``model``."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error, raw, model) from None


async def read_raw(request: Request, max_bytes: int) -> bytes:
    """The body as it came. Raises ``APIError`` as ``read_body`` does, except for what is in it."""
    _check_headers(request)
    body = bytearray()
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared) > max_bytes
    if not too_large:
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + BODY_S
        try:
            async with asyncio.timeout(min(SILENCE_S, BODY_S)) as silence:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > max_bytes:
                        too_large = True
                        break
                    silence.reschedule(min(now_s() + SILENCE_S, deadline_s))
        except ClientDisconnect:
            raise APIError(STATUS_CLIENT_LEFT, "the client left before it had sent its body") from None
        except TimeoutError:
            promised = f" of the {declared} that Content-Length promised" if declared else ""
            came = f"{len(body)} bytes{promised} of the body"
            late = now_s() >= deadline_s
            message = f"only {came} came within {BODY_S:.0f} s" if late else f"nothing came for {SILENCE_S:.0f} s after {came}"
            raise APIError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
    if too_large:
        raise APIError(413, f"the body is larger than {max_bytes} bytes", code="body_too_large", headers={"Connection": "close"})
    raw = bytes(body)
    if len(raw) > MAX_FIELDS:
        _check_size(raw)
    return raw


def _check_size(raw: bytes) -> None:
    for what, marks, most in (("values", b",[{", MAX_VALUES), ("fields", b":", MAX_FIELDS)):
        found = sum(raw.count(mark) for mark in marks)
        if found > most:
            signs = " ".join(chr(mark) for mark in marks)
            raise APIError(400, f"the body has more than {most} {what}, counted by {signs} ({found})", code="body_too_complex")


def _check_headers(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type != "application/json":
        shown = f"Content-Type is {content_type!r:.100}"
        media_type, _, parameters = content_type.lower().partition(";")
        if media_type.strip() != "application/json":
            raise APIError(415, f"{shown}; it must be application/json", code="unsupported_media_type")
        charset = _CHARSET.search(";" + parameters)
        if charset is not None and charset.group(1) not in ("utf-8", "utf8", "us-ascii"):
            raise APIError(415, f"{shown}; the charset of JSON is utf-8", code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise APIError(415, f"Content-Encoding is {encoding!r:.100}; bodies must be sent as they are", code="unsupported_media_type")
