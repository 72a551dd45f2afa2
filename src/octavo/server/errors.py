"""Errors as the OpenAI API words them.

Every failure leaves the server as ``{"error": {"message", "type", "param", "code"}}`` with a fitting status. ``APIError`` is
what the server's own code raises; ``from_validation`` turns the first complaint of pydantic about a body into one that names the
field as the client wrote it, its value, and what would be right; ``from_engine`` does so for what the engine refuses at its door.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.responses import Response

MAX_SHOWN_VALUE = 80
"""Characters of an offending value that a message repeats."""

MAX_MESSAGE = 1000
"""Characters of a message, whatever is in it."""

_ENGINE_REFUSAL = re.compile(r"^([A-Za-z_][\w.\[\]]*)=")


class ErrorDetail(BaseModel):
    """What went wrong: for people (``message``), and for programs (``type``, ``param``, ``code``)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response whose status is not 2xx."""

    error: ErrorDetail


class APIError(Exception):
    """A failure with its HTTP status. ``param`` names the offending field, ``code`` is stable for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = _cut(message, MAX_MESSAGE)
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = None if param is None else _cut(param, 4 * MAX_SHOWN_VALUE)
        self.code = code
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body, UTF-8."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        return Response(self.body(), self.status, headers=self.headers, media_type="application/json")


def invalid(param: str, value: object, hint: str, *, code: str | None = "invalid_value") -> APIError:
    """400: ``param`` has a value that can never be right; ``hint`` says what would be."""
    param = _cut(param, 2 * MAX_SHOWN_VALUE)
    return APIError(400, f"{param}={shown(value)} is invalid: {hint}", param=param, code=code)


def unsupported(param: str, value: object, hint: str) -> APIError:
    """400: the OpenAI API has this parameter, this server does not."""
    return APIError(400, f"{param}={shown(value)} is not supported by this server: {hint}", param=param, code="unsupported_parameter")


def context_too_long(num_prompt: int, max_tokens: int | None, max_model_len: int, param: str, *, at_least: bool = False) -> APIError:
    """400: prompt and output together do not fit the model's context. ``at_least``: the prompt was not counted to its end."""
    asked = f"the prompt has {'at least ' if at_least else ''}{num_prompt} tokens" + (
        f" and max_tokens is {max_tokens}" if max_tokens is not None else ""
    )
    limit = "which leaves no room for an output token" if max_tokens is None else f"{num_prompt + max_tokens} in all"
    cure = f"shorten the {param}" + ("" if max_tokens is None else ", lower max_tokens")
    cure += ", which is too long to be tokenized and cut here" if at_least else " or set truncate_prompt_tokens"
    return APIError(
        400,
        f"This model's maximum context length is {max_model_len} tokens, but {asked}, {limit}. Prompts are not cut unasked: {cure}.",
        param=param,
        code="context_length_exceeded",
    )


def shutting_down() -> APIError:
    """503: the server is going away and ended this request early."""
    return APIError(503, "the server is shutting down; the request was ended early", code="server_shutting_down")


def from_engine(error: ValueError) -> APIError:
    """400 for what the engine refused at its door; its messages begin with ``field=value`` where a field is to blame."""
    message = str(error)
    found = _ENGINE_REFUSAL.match(message)
    param = found.group(1) if found else None
    if param is not None and param.startswith("prompt_token_ids"):
        param = "prompt"  # the only way ids get in
    return APIError(400, message, param=param, code="invalid_value")


def shown(value: object) -> str:
    """``value`` as JSON, cut to a length that fits a message."""
    if isinstance(value, str | list | dict) and len(value) > 4 * MAX_SHOWN_VALUE:
        if isinstance(value, dict):
            return f"an object of {len(value)} fields"
        value = value[: 4 * MAX_SHOWN_VALUE]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return _cut(text, MAX_SHOWN_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def from_validation(error: ValidationError, body: bytes, model: type[BaseModel]) -> APIError:
    """400 for the first complaint of pydantic; ``body`` is the raw request, ``model`` the schema it failed."""
    first = error.errors(include_url=False)[0]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return APIError(400, f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}", code="invalid_json")
    if not first["loc"]:
        if kind == "model_type":
            return APIError(400, f"the body must be a JSON object, not {shown(first['input'])}", code="invalid_type")
        return APIError(400, _lower(message.removeprefix("Value error, ")), code="invalid_value")
    param = _path(first, body)
    value = first["input"]
    if kind == "missing":
        return APIError(400, f"{param} is required", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return _unknown(param, str(first["loc"][-1]), model)
    top = model.model_fields.get(str(first["loc"][0]))
    extra = top.json_schema_extra if top is not None else None
    if isinstance(extra, dict) and "x-unsupported" in extra:
        return unsupported(param, value, str(extra["x-unsupported"]))
    if "union_tag" in kind:
        expected = str(first.get("ctx", {}).get("expected_tags", ""))
        name = str(first.get("ctx", {}).get("discriminator", "")).strip("'")
        if isinstance(value, dict) and name and not name.endswith(")"):
            param = f"{param}.{name}"
            if name not in value:
                return APIError(400, f"{param} is required", param=param, code="missing_required_parameter")
            value = value[name]
        return invalid(param, value, f"must be one of {expected}")
    if kind == "too_short":
        return invalid(param, value, "must not be empty")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(param, value, _lower(message.removeprefix("Value error, ")).replace("input should be", "must be", 1), code=code)


def _unknown(param: str, name: str, model: type[BaseModel]) -> APIError:
    close = difflib.get_close_matches(name, model.model_fields, n=1) if param == name and len(name) <= MAX_SHOWN_VALUE else []
    hint = f"; did you mean {close[0]}?" if close else ""
    return APIError(400, f"{shown(param)[1:-1]} is not a parameter of this endpoint{hint}", param=param, code="unknown_parameter")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _path(first: ErrorDetails, body: bytes) -> str:
    """Where the error is, in the client's own terms: ``messages[0].content``.

    Pydantic's location also holds the names of union members; walking the body along it tells those from real keys.
    """
    where: Any = from_json(body)
    loc = first["loc"]
    path = ""
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(step, int):
            if isinstance(where, list):
                path += f"[{step}]"
                where = where[step] if step < len(where) else None
        elif isinstance(where, dict) and (step in where or (last and first["type"] == "missing")):
            path += ("." if path else "") + _cut(step, MAX_SHOWN_VALUE)
            where = where.get(step)
    return path or str(loc[0])
