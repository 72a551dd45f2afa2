"""Around every request, in plain ASGI so that a stream passes through at the price of one call: the request id, the bearer token, one
log line, and the last net under unexpected errors."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.errors import APIError
from octavo.server.generation import Account

logger = logging.getLogger("octavo.server")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
QUIET_PATHS = frozenset({"/health", "/metrics"})
"""Asked every few seconds by monitors; logged at DEBUG."""

GUARDED_PATHS = ("/v1", "/tokenize", "/detokenize")
"""Beginnings of the paths that ask for the API key (``/tokenizer_info`` is among them)."""

ACCOUNT = "octavo.account"
"""Key of the request's ``Account`` in the ASGI scope."""


class RequestMiddleware:
    """Honours a sane ``X-Request-Id`` (1 to 128 visible ASCII characters) or makes one, returns it, and logs the request by it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        account = scope[ACCOUNT] = Account()
        status = 0

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        try:
            await self.app(scope, receive, tagged_send)
        except Exception:
            logger.exception("%s %s failed [%s]", scope["method"], scope["path"], request_id)
            if status:
                raise
            error = APIError(500, f"internal error; the server's log has the details under request id {request_id}", code="internal_error")
            await error.response()(scope, receive, tagged_send)
        finally:
            level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "%s", _line(scope, status, account, request_id))


def _line(scope: Scope, status: int, account: Account, request_id: str) -> str:
    took_ms = 1000 * (time.monotonic() - account.started_s)
    path = scope["path"].encode("unicode_escape").decode("ascii")  # no line breaks in the log
    tokens = account.describe()
    return f"{scope['method']} {path} {status or '-'} in {took_ms:.0f} ms" + (f": {tokens}" if tokens else "") + f" [{request_id}]"


class ApiKeyMiddleware:
    """Asks for ``Authorization: Bearer <key>`` on every guarded path."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED_PATHS) and not self._admits(scope):
            error = APIError(
                401,
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        values: list[Any] = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, token = values[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._expected)
