"""``create_app``: the engine as an ASGI application with the OpenAI API's endpoints, health, metrics and docs.

Bodies are read and validated here rather than by FastAPI, so that every fault in one (its size, its type, its encoding, a field) is
answered in the OpenAI API's words; ``/openapi.json`` is completed accordingly.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from octavo.engine.async_llm import AsyncLLM
from octavo.server import pages, replies
from octavo.server.chat import chat
from octavo.server.completions import complete
from octavo.server.errors import APIError, ErrorResponse, from_validation
from octavo.server.generation import Service
from octavo.server.middleware import ACCOUNT, ApiKeyMiddleware, RequestMiddleware
from octavo.server.protocol import ChatCompletionRequest, CompletionRequest
from octavo.server.sse import STATUS_CLIENT_LEFT, answer

MAX_BODY_BYTES = 32 << 20

T = TypeVar("T", bound=BaseModel)


def octavo_version() -> str:
    try:
        return version("octavo")
    except PackageNotFoundError:
        return "0+source"


def create_app(
    llm: AsyncLLM,
    *,
    api_key: str | None = None,
    cors_origins: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The application around ``llm``, which is started with it; whoever made ``llm`` shuts it down.

    ``api_key`` is asked for below ``/v1`` when given. ``cors_origins`` are the web origins whose pages may call the server (``"*"``
    for any); none by default. ``app.state.service.close()`` ends all running requests.
    """
    service = Service(llm)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        if not llm.is_running:
            llm.start()
        yield
        service.close()

    middleware = [Middleware(RequestMiddleware)]
    if cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"], expose_headers=["X-Request-Id"]
            )
        )
    if api_key is not None:
        middleware.append(Middleware(ApiKeyMiddleware, api_key=api_key))
    app = FastAPI(
        title="Octavo",
        version=octavo_version(),
        description="The OpenAI API, served by a PagedAttention engine on ordinary CPUs.",
        lifespan=lifespan,
        middleware=middleware,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.include_router(_api(service, max_body_bytes))
    app.include_router(_operations(service))
    app.include_router(pages.router)
    document = _openapi(app, service, secured=api_key is not None)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(document)

    return app


def _api(service: Service, max_body_bytes: int) -> APIRouter:
    router = APIRouter(prefix="/v1")
    llm = service.llm

    @router.post(
        "/completions",
        summary="Complete one or more prompts",
        tags=["Generation"],
        responses=_responses(replies.Completion, 400, 404, 413, 415, 500, 503, chunk=replies.CompletionChunk),
        openapi_extra=_body(CompletionRequest, prompt="The capital of France is"),
    )
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest, max_body_bytes)
        return await _answer(request, service, complete(service, body, request.scope[ACCOUNT]), streams=bool(body.stream))

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        tags=["Generation"],
        responses=_responses(replies.ChatCompletion, 400, 404, 413, 415, 500, 503, chunk=replies.ChatCompletionChunk),
        openapi_extra=_body(ChatCompletionRequest, messages=[{"role": "user", "content": "What is gravity?"}]),
    )
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatCompletionRequest, max_body_bytes)
        return await _answer(request, service, chat(service, body, request.scope[ACCOUNT]), streams=bool(body.stream))

    def describe() -> dict[str, Any]:
        return {
            "id": llm.model_name,
            "object": "model",
            "created": service.created,
            "owned_by": "octavo",
            "max_model_len": llm.max_model_len,
        }

    @router.get("/models", summary="The served model", tags=["Models"], responses=_responses(replies.ModelList))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [describe()]})

    @router.get("/models/{model_id:path}", summary="One model", tags=["Models"], responses=_responses(replies.Model, 404))
    async def model(model_id: str) -> Response:
        service.check_model(model_id)
        return JSONResponse(describe())

    return router


def _operations(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operation"])
    llm = service.llm

    @router.get("/health", summary="Whether the engine runs", responses=_responses(replies.Health, 503))
    async def health() -> Response:
        service.check_alive()
        return JSONResponse({"status": "ok"})

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(llm.registry), headers={"Content-Type": content_type})

    @router.get("/version", summary="What is running", responses=_responses(replies.Version))
    async def running_version() -> Response:
        return JSONResponse(
            {
                "version": octavo_version(),
                "model": llm.model_name,
                "system_fingerprint": llm.system_fingerprint,
                "config": asdict(llm.config),
            }
        )

    return router


async def _answer(request: Request, service: Service, work: Any, *, streams: bool) -> Response:
    """A stream watches its client itself once it is sent; until then, and for whole answers, the watch is here."""
    if streams:
        response: Response = await work
        return response
    return await answer(work, request.receive, service.closing)


async def read_body(request: Request, model: type[T], max_bytes: int) -> T:
    """The validated body. Raises ``APIError``: 413 too large, 415 not JSON by its type, 400 anything else."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise APIError(415, f"Content-Type is {content_type!r:.100}; it must be application/json", code="unsupported_media_type")
    body = bytearray()
    declared = request.headers.get("content-length", "")
    too_large = declared.isdecimal() and int(declared) > max_bytes
    if not too_large:
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    too_large = True
                    break
        except ClientDisconnect:
            raise APIError(STATUS_CLIENT_LEFT, "the client left before it had sent its body") from None
    if too_large:
        raise APIError(413, f"the body is larger than {max_bytes} bytes", code="body_too_large", headers={"Connection": "close"})
    raw = bytes(body)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error, raw, model) from None


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return APIError(404, f"Unknown request URL: {where}. See /docs for what there is.", code="unknown_url").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{where} is not allowed; use {allowed}"
        return APIError(405, message, code="method_not_allowed", headers=error.headers).response()
    return APIError(error.status_code, str(error.detail), headers=error.headers).response()


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return APIError(400, str(first["msg"]), param=str(first["loc"][-1]), code="invalid_value").response()


_ERRORS = {
    400: "The request is malformed, or asks for what cannot be done; the message names the field and the value.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
    500: "The request failed.",
    503: "The engine does not run.",
}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _responses(model: type[BaseModel], *errors: int, chunk: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
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


def _body(model: type[BaseModel], **prompt: Any) -> dict[str, Any]:
    """``prompt``: the field that makes the examples; nobody wants to clear away every other field first."""
    examples = {
        "Whole": {"value": {**prompt, "max_tokens": 64}},
        "Streamed": {"value": {**prompt, "max_tokens": 64, "stream": True, "stream_options": {"include_usage": True}}},
        "Repeatable samples": {"value": {**prompt, "max_tokens": 32, "temperature": 0.8, "seed": 1, "n": 2}},
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(model), "examples": examples}}}}


def _openapi(app: FastAPI, service: Service, *, secured: bool) -> dict[str, Any]:
    """The document, with the schemas of bodies and chunks, which FastAPI does not see; the only valid model id stands in it."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    bodies = (CompletionRequest, ChatCompletionRequest)
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
            if secured and path.startswith("/v1"):
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
