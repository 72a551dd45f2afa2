"""``POST /v1/chat/completions``: a conversation in, the assistant's answer out, whole or as a stream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from json.encoder import encode_basestring_ascii
from typing import Any

from starlette.responses import Response

from octavo.engine.outputs import CompletionOutput, RequestOutput
from octavo.server.chunks import ending, last_events
from octavo.server.errors import APIError
from octavo.server.generation import Account, Service, new_id
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.protocol import ChatCompletionRequest, Conversation, TextPart
from octavo.server.sse import EventStream
from octavo.text import AnswerSplitter

ID_PREFIX = "chatcmpl"

_MARK = "\ue000octavo-continues-here\ue000"
"""Stands behind the message to continue while the template is rendered; everything from it on is cut off."""


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def render(service: Service, request: Conversation) -> str:
    """The conversation as one prompt. Raises ``APIError`` when there is no template or it refuses the messages."""
    template = service.llm.chat_template
    if template is None:
        raise APIError(
            400, f"the model {service.llm.model_name} has no chat template; use /v1/completions", param="messages", code="no_chat_template"
        )
    messages: list[dict[str, Any]] = []
    for message in request.messages:
        entry = {"role": "system" if message.role == "developer" else message.role, "content": _text(message.content)}
        if message.name is not None:
            entry["name"] = message.name
        if message.role == "assistant" and message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
        messages.append(entry)
    goes_on = bool(request.continue_final_message)
    if goes_on:
        messages[-1]["content"] += _MARK
    opens_answer = request.add_generation_prompt is not False and not goes_on
    try:
        prompt = template.render(messages, add_generation_prompt=opens_answer, **(request.chat_template_kwargs or {}))
    except ValueError as error:
        raise APIError(400, str(error), param="messages", code="invalid_value") from error
    if goes_on:
        prompt, mark, _ = prompt.rpartition(_MARK)
        if not mark:
            raise APIError(
                400, "the chat template does not show the last message, so it cannot be continued", param="continue_final_message"
            )
    return prompt


class ChatAnswer:
    """Builds the answer to one request from the engine's outputs."""

    def __init__(
        self,
        service: Service,
        request: ChatCompletionRequest,
        prompt: list[int],
        account: Account,
        new_splitter: Callable[[], AnswerSplitter] | None = None,
    ) -> None:
        """``new_splitter``: for models that think, what takes a branch's thinking and answer apart."""
        self.id = new_id(ID_PREFIX)
        self._new_splitter = new_splitter
        self._shows_reasoning = request.include_reasoning is not False
        self._service = service
        self._request = request
        self._prompt = prompt
        self._account = account
        self._head = {
            "id": self.id,
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.llm.model_name,
            "system_fingerprint": service.llm.system_fingerprint,
            "service_tier": None,
        }

    def whole(self, output: RequestOutput) -> Response:
        """The answer that is not streamed."""
        choices = []
        for branch in output.outputs:
            message: dict[str, Any] = {"role": "assistant", "content": branch.text, "refusal": None}
            if self._new_splitter is not None:
                reasoning, message["content"] = self._new_splitter().push(branch.text, finished=True)
                if self._shows_reasoning:
                    message["reasoning_content"] = reasoning or None
            choice: dict[str, Any] = {
                "index": branch.index,
                "message": message,
                "logprobs": self._logprobs_of(branch),
                "finish_reason": branch.finish_reason,
                "stop_reason": branch.stop_reason,
            }
            if self._request.return_token_ids:
                choice["token_ids"] = branch.token_ids
            choices.append(choice)
        body: dict[str, Any] = {**self._head, "choices": choices, "usage": self._account.usage()}
        if self._request.return_token_ids:
            body["prompt_token_ids"] = self._prompt
        if self._request.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self._prompt, self._request.prompt_logprobs)
        return Response(json.dumps(body, allow_nan=False), media_type="application/json")

    async def events(self, batches: AsyncGenerator[list[tuple[int, RequestOutput]], None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. The constant head of a chunk is encoded once; a chunk adds its text to it."""
        request, account = self._request, self._account
        head = "data: " + json.dumps(self._head)[:-1] + ', "choices": [{"index": '
        tail = ', "usage": null}\n\n' if request.include_usage else "}\n\n"
        begun: set[int] = set()
        splitters: dict[int, AnswerSplitter] = {}
        async with aclosing(batches):
            async for batch in batches:
                chunks = []
                for _, output in batch:
                    for branch in output.outputs:
                        if request.continuous_usage:
                            tail = f', "usage": {json.dumps(account.usage())}}}\n\n'
                        if branch.index not in begun:
                            ids = f', "prompt_token_ids": {json.dumps(self._prompt)}' if request.return_token_ids and not begun else ""
                            begun.add(branch.index)
                            opening = '{"role": "assistant", "content": "", "refusal": null}, "logprobs": null, "finish_reason": null}]'
                            chunks.append(f'{head}{branch.index}, "delta": {opening}{ids}{tail}')
                            if self._new_splitter is not None:
                                splitters[branch.index] = self._new_splitter()
                        text = branch.text
                        if splitters:
                            reasoning, text = splitters[branch.index].push(text, finished=branch.finish_reason is not None)
                            if reasoning and self._shows_reasoning:
                                delta = f'{{"reasoning_content": {encode_basestring_ascii(reasoning)}}}, "logprobs": null'
                                chunks.append(f'{head}{branch.index}, "delta": {delta}, "finish_reason": null}}]{tail}')
                        logprobs = "null" if not branch.logprobs else json.dumps(self._logprobs_of(branch))
                        extra = f', "token_ids": {json.dumps(branch.token_ids)}' if request.return_token_ids else ""
                        if not text and logprobs == "null" and not extra and branch.finish_reason is None:
                            continue
                        delta = f'{{"content": {encode_basestring_ascii(text)}}}' if text else "{}"
                        chunks.append(f'{head}{branch.index}, "delta": {delta}, "logprobs": {logprobs}, {ending(branch)}{extra}}}]{tail}')
                if chunks:
                    yield "".join(chunks).encode("ascii")
        yield last_events(request, self._head, account)

    def _logprobs_of(self, branch: CompletionOutput) -> dict[str, Any] | None:
        if not self._request.logprobs or branch.logprobs is None:
            return None
        return chat_logprobs(self._service.llm.tokenizer, branch.token_ids, branch.logprobs, self._request.top_logprobs or 0)


async def chat(service: Service, request: ChatCompletionRequest, account: Account) -> Response:
    """Answer one request. Raises ``APIError``."""
    service.check_alive()
    service.check_model(request.model)
    request.check()
    text = render(service, request)
    prompts = await service.encode([text], add_special_tokens=False, param="messages")
    prompts = service.truncated(prompts, request.truncate_prompt_tokens, request.output_limit)
    params = request.sampling(service.room(prompts, request.output_limit, "messages"), service.llm.sampling_defaults)
    new_splitter = None
    if service.thinking is not None:
        said = _text(request.messages[-1].content) if request.continue_final_message else ""
        hides_control = request.skip_special_tokens is not False
        new_splitter = service.thinking.splitter_for(text, said, hides_control=hides_control)
        if service.thinking.needs_control_tokens and hides_control:
            params = replace(params, skip_special_tokens=False)
    answer = ChatAnswer(service, request, prompts[0], account, new_splitter)
    if request.stream:
        return EventStream(answer.events(service.outputs(prompts, params, answer.id, account)), service.closing)
    return answer.whole((await service.final_outputs(prompts, params, answer.id, account))[0])
