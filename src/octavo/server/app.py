"""``create_app``: the engine as an ASGI application with the OpenAI API's endpoints, the tokenizer's, health, metrics and docs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from octavo.engine.async_llm import AsyncLLM
from octavo.server import pages, replies
from octavo.server.body import parse, read_body, read_raw
from octavo.server.chat import chat
from octavo.server.completions import complete
from octavo.server.errors import APIError
from octavo.server.generation import Service
from octavo.server.middleware import ACCOUNT, ApiKeyMiddleware, RequestMiddleware
from octavo.server.openapi import DESCRIPTION, body_of, generation_body, openapi_document, responses
from octavo.server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    tokenize_form,
)
from octavo.server.sse import answer
from octavo.server.tokens import describe_tokenizer, detokenize, tokenize

MAX_BODY_BYTES = 32 << 20


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

    ``api_key`` is asked for below ``/v1`` and by the tokenizer's endpoints when given. ``cors_origins`` are the web origins whose pages
    may call the server (``"*"`` for any); none by default. ``app.state.service.close()`` ends all running requests.
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
        description=DESCRIPTION,
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
    app.include_router(_tokenizer(service, max_body_bytes))
    app.include_router(_operations(service))
    app.include_router(pages.router)
    document = openapi_document(app, service, secured=api_key is not None)

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
        responses=responses(replies.Completion, 400, 404, 408, 413, 415, 500, 503, chunk=replies.CompletionChunk),
        openapi_extra=generation_body(CompletionRequest, prompt="The capital of France is"),
    )
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionRequest, max_body_bytes)
        return await _answer(request, service, complete(service, body, request.scope[ACCOUNT]), streams=bool(body.stream))

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        tags=["Generation"],
        responses=responses(replies.ChatCompletion, 400, 404, 408, 413, 415, 500, 503, chunk=replies.ChatCompletionChunk),
        openapi_extra=generation_body(ChatCompletionRequest, messages=[{"role": "user", "content": "What is gravity?"}]),
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

    @router.get("/models", summary="The served model", tags=["Models"], responses=responses(replies.ModelList))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [describe()]})

    @router.get("/models/{model_id:path}", summary="One model", tags=["Models"], responses=responses(replies.Model, 404))
    async def model(model_id: str) -> Response:
        service.check_model(model_id)
        return JSONResponse(describe())

    return router


def _tokenizer(service: Service, max_body_bytes: int) -> APIRouter:
    router = APIRouter(tags=["Tokenizer"])

    @router.post(
        "/tokenize",
        summary="Token ids of a text or a conversation",
        responses=responses(replies.Tokens, 400, 404, 408, 413, 415, 500, 503),
        openapi_extra=body_of(
            TokenizeTextRequest,
            TokenizeChatRequest,
            Text={"prompt": "The capital of France is", "return_token_strs": True},
            Conversation={"messages": [{"role": "user", "content": "What is gravity?"}], "return_token_strs": True},
        ),
    )
    async def tokenizes(request: Request) -> Response:
        raw = await read_raw(request, max_body_bytes)
        return await _answer(request, service, tokenize(service, parse(raw, tokenize_form(raw))), streams=False)

    @router.post(
        "/detokenize",
        summary="The text of token ids",
        responses=responses(replies.Text, 400, 404, 408, 413, 415, 500, 503),
        openapi_extra=body_of(DetokenizeRequest, Ids={"tokens": [504, 3575, 282, 4649, 314]}),
    )
    async def detokenizes(request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest, max_body_bytes)
        return await _answer(request, service, detokenize(service, body), streams=False)

    @router.get("/tokenizer_info", summary="The tokenizer and the chat template", responses=responses(replies.TokenizerInfo))
    async def tokenizer_info() -> Response:
        return JSONResponse(describe_tokenizer(service))

    return router


def _operations(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operation"])
    llm = service.llm

    @router.get("/health", summary="Whether the engine runs", responses=responses(replies.Health, 503))
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

    @router.get("/version", summary="What is running", responses=responses(replies.Version))
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
