"""The OpenAPI document: what FastAPI makes of the routes, completed by the bodies, streams and errors that it does not see."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from octavo.server import replies
from octavo.server.errors import ErrorResponse
from octavo.server.generation import Service
from octavo.server.middleware import GUARDED_PATHS
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest

DESCRIPTION = """\
The OpenAI API, served by a PagedAttention engine on ordinary CPUs.

Bodies are JSON in UTF-8, with at most a million values and a hundred thousand fields. Types are exact and unknown fields are refused,
each with an error that names the field; of a key that occurs twice in an object the last one counts. A prompt that overflows the
model's context is refused (`context_length_exceeded`) unless `truncate_prompt_tokens` allows it to be cut."""

_ERRORS = {
    400: "The request is malformed, or asks for what cannot be done; the message names the field and the value.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body is too large.",
    408: "The body stopped coming.",
    415: "The body is not `application/json` in UTF-8.",
    500: "The request failed.",
    503: "The engine does not run.",
}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def responses(model: type[BaseModel], *errors: int, chunk: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """``chunk``: what the events of a stream hold, up to the last one, ``[DONE]``."""
    ok: dict[str, Any] = {"model": model}
    if chunk is not None:
        data = {
            "type": "string",
            "anyOf": [
                {"const": "[DONE]"},
                {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref(chunk), _ref(ErrorResponse)]}},
            ],
        }
        events = {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}
        ok |= {"content": {"text/event-stream": events}, "description": "The answer, or its pieces as they are made with `stream`."}
    return {200: ok, **{status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in errors}}


def body_of(*models: type[BaseModel], **examples: dict[str, Any]) -> dict[str, Any]:
    """``models``: the forms a body may take; ``examples``: name (with underscores for spaces) to body."""
    schema: dict[str, Any] = _ref(models[0]) if len(models) == 1 else {"oneOf": [_ref(model) for model in models]}
    named = {name.replace("_", " "): {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}}


def generation_body(model: type[BaseModel], **prompt: Any) -> dict[str, Any]:
    """``prompt``: the field that makes the examples; nobody wants to clear away every other field first."""
    return body_of(
        model,
        Whole={**prompt, "max_tokens": 64},
        Streamed={**prompt, "max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}},
        Repeatable_samples={**prompt, "max_tokens": 32, "temperature": 0.8, "seed": 1, "n": 2},
    )


def openapi_document(app: FastAPI, service: Service, *, secured: bool) -> dict[str, Any]:
    """The document, with the schemas of bodies and chunks, which FastAPI does not see; the only valid model id stands in it.

    ``secured``: an API key is asked for.
    """
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    bodies = (CompletionRequest, ChatCompletionRequest, TokenizeTextRequest, TokenizeChatRequest, DetokenizeRequest)
    chunks = (replies.CompletionChunk, replies.ChatCompletionChunk)
    _, definitions = models_json_schema(
        [(model, "validation") for model in (*bodies, *chunks)], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    for model in bodies:
        schemas[model.__name__]["properties"]["model"]["anyOf"][0]["enum"] = [service.llm.model_name]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if secured and path.startswith(GUARDED_PATHS):
                operation["security"] = [{"bearer": []}]
                operation["responses"]["401"] = {
                    "description": _ERRORS[401],
                    "content": {"application/json": {"schema": _ref(ErrorResponse)}},
                }
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if secured:
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document
