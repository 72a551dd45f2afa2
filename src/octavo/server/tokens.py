"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: the served model's tokenizer for clients that count or cut for themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse, Response

from octavo.server.chat import render
from octavo.server.errors import invalid
from octavo.server.generation import Service
from octavo.server.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest

_INLINE_TOKENS = 4096
"""More than this are turned into text on a thread of their own, so that streams go on."""


async def tokenize(service: Service, request: TokenizeTextRequest | TokenizeChatRequest) -> Response:
    """Counts what overflows the context, too: clients ask in order to find out. Raises ``APIError``."""
    service.check_model(request.model)
    if isinstance(request, TokenizeChatRequest):
        request.check()
        text, special, param = render(service, request), request.add_special_tokens is True, "messages"
    else:
        text, special, param = request.prompt, request.add_special_tokens is not False, "prompt"
    encoded = await service.encode([text], add_special_tokens=special, param=param)
    (ids,) = service.truncated(encoded, request.truncate_prompt_tokens, None)
    tokenizer = service.llm.tokenizer
    return JSONResponse(
        {
            "count": len(ids),
            "max_model_len": service.llm.max_model_len,
            "tokens": ids,
            "token_strs": [tokenizer.id_to_token(i) for i in ids] if request.return_token_strs else None,
        }
    )


async def detokenize(service: Service, request: DetokenizeRequest) -> Response:
    """Special tokens are spelled out, so that tokenizing the text again gives the same ids. Raises ``APIError``."""
    service.check_model(request.model)
    tokenizer, ids = service.llm.tokenizer, request.tokens
    if ids and max(ids) >= tokenizer.vocab_size:
        at, wrong = next((at, i) for at, i in enumerate(ids) if i >= tokenizer.vocab_size)
        raise invalid(f"tokens[{at}]", wrong, f"the vocabulary has ids 0 to {tokenizer.vocab_size - 1}")
    if len(ids) <= _INLINE_TOKENS:
        text = tokenizer.decode(ids, skip_special_tokens=False)
    else:
        text = await asyncio.to_thread(tokenizer.decode, ids, skip_special_tokens=False)
    return JSONResponse({"prompt": text})


def describe_tokenizer(service: Service) -> dict[str, Any]:
    """The body of ``/tokenizer_info``."""
    llm = service.llm
    tokenizer = llm.tokenizer
    named: dict[str, Any] = {}
    for name in ("bos", "eos", "pad"):
        token_id: int | None = getattr(tokenizer, f"{name}_token_id")
        named[f"{name}_token"] = None if token_id is None else tokenizer.id_to_token(token_id)
        named[f"{name}_token_id"] = token_id
    return {
        "model": llm.model_name,
        "tokenizer_class": tokenizer.model_type,
        "vocab_size": tokenizer.vocab_size,
        "max_model_len": llm.max_model_len,
        **named,
        "eos_token_ids": sorted(tokenizer.eos_token_ids),
        "special_tokens": {tokenizer.id_to_token(i): i for i in sorted(tokenizer.special_ids)},
        "chat_template": None if llm.chat_template is None else llm.chat_template.source,
        "reasoning_tags": None if service.thinking is None else [service.thinking.tags.opening, service.thinking.tags.closing],
    }
