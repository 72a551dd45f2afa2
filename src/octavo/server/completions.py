"""``POST /v1/completions``: prompts in, text out, whole or as a stream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from json.encoder import encode_basestring_ascii
from typing import Any

from starlette.responses import Response

from octavo.engine.outputs import CompletionOutput, Logprob, RequestOutput
from octavo.server.chunks import ending, last_events
from octavo.server.errors import unsupported
from octavo.server.generation import Account, Service, new_id
from octavo.server.logprobs import CompletionLogprobs, prompt_logprobs
from octavo.server.protocol import CompletionRequest
from octavo.server.sse import EventStream

ID_PREFIX = "cmpl"


async def prompt_ids(service: Service, request: CompletionRequest) -> list[list[int]]:
    """Token ids of every prompt; of what comes before ``suffix``, if there is one. Raises ``APIError``."""
    prompt = request.prompt
    if isinstance(prompt, str):
        prompt = [prompt]
    texts = [p for p in prompt if isinstance(p, str)]
    if texts:
        whole = request.add_special_tokens is not False and not request.suffix
        return await service.encode(texts, add_special_tokens=whole, param="prompt")
    lists = [p for p in prompt if isinstance(p, list)]
    return lists or [[p for p in prompt if isinstance(p, int)]]


def prompt_texts(service: Service, request: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """What ``echo`` puts in front of each prompt's answers: the text as it came, or that of the token ids where they came or were cut."""
    if not request.echo:
        return [""] * len(prompts)
    if request.truncate_prompt_tokens is None:
        texts = [request.prompt] if isinstance(request.prompt, str) else [p for p in request.prompt if isinstance(p, str)]
        if texts:
            return texts
    return [service.llm.tokenizer.decode(ids) for ids in prompts]


async def infilled(service: Service, request: CompletionRequest, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts that ask for what belongs between each of ``prompts`` and ``suffix``. Raises ``APIError``."""
    tokenizer = service.llm.tokenizer
    if tokenizer.fim is None:
        raise unsupported("suffix", request.suffix, "the served model has no tokens for filling in the middle")
    (after,) = await service.encode([request.suffix or ""], add_special_tokens=False, param="suffix")
    return [tokenizer.infill(before, after, add_special_tokens=request.add_special_tokens is not False) for before in prompts]


class CompletionAnswer:
    """Builds the answer to one request from the engine's outputs."""

    def __init__(self, service: Service, request: CompletionRequest, prompts: list[list[int]], echoes: list[str], account: Account) -> None:
        self.id = new_id(ID_PREFIX)
        self._service = service
        self._request = request
        self._prompts = prompts
        self._echoes = echoes
        self._account = account
        self._n = request.n or 1
        self._head = {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.llm.model_name,
            "system_fingerprint": service.llm.system_fingerprint,
        }
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._of_prompts: dict[int, list[dict[int, Logprob] | None]] = {}

    def whole(self, outputs: list[RequestOutput]) -> Response:
        """The answer that is not streamed."""
        choices = []
        for number, output in enumerate(outputs):
            self._keep_prompt_logprobs(number, output)
            for branch in output.outputs:
                choice: dict[str, Any] = {
                    "index": number * self._n + branch.index,
                    "text": self._echoes[number] + branch.text,
                    "logprobs": self._logprobs_of(number, branch),
                    "finish_reason": branch.finish_reason,
                    "stop_reason": branch.stop_reason,
                }
                if self._request.prompt_logprobs is not None:
                    wanted = self._request.prompt_logprobs
                    choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self._prompts[number], wanted)
                if self._request.return_token_ids:
                    choice |= {"prompt_token_ids": self._prompts[number], "token_ids": branch.token_ids}
                choices.append(choice)
        body = {**self._head, "choices": choices, "usage": self._account.usage()}
        return Response(json.dumps(body, allow_nan=False), media_type="application/json")

    async def events(self, batches: AsyncGenerator[list[tuple[int, RequestOutput]], None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. The constant head of a chunk is encoded once; a chunk adds its text to it."""
        request, account = self._request, self._account
        head = "data: " + json.dumps(self._head)[:-1] + ', "choices": [{"index": '
        tail = ', "usage": null}\n\n' if request.include_usage else "}\n\n"
        begun: set[int] = set()
        async with aclosing(batches):
            async for batch in batches:
                chunks = []
                for number, output in batch:
                    self._keep_prompt_logprobs(number, output)
                    for branch in output.outputs:
                        index = number * self._n + branch.index
                        extra, text = "", branch.text
                        if index not in begun:
                            begun.add(index)
                            text = self._echoes[number] + text
                            if request.return_token_ids:
                                extra = f', "prompt_token_ids": {json.dumps(self._prompts[number])}'
                        logprobs = self._logprobs_of(number, branch)
                        if logprobs is not None and not logprobs["tokens"]:
                            logprobs = None
                        if request.return_token_ids:
                            extra += f', "token_ids": {json.dumps(branch.token_ids)}'
                        elif not text and not logprobs and branch.finish_reason is None:
                            continue
                        if request.continuous_usage:
                            tail = f', "usage": {json.dumps(account.usage())}}}\n\n'
                        chunks.append(
                            f'{head}{index}, "text": {encode_basestring_ascii(text)}, '
                            f'"logprobs": {"null" if logprobs is None else json.dumps(logprobs)}, {ending(branch)}{extra}}}]{tail}'
                        )
                if chunks:
                    yield "".join(chunks).encode("ascii")
        yield last_events(request, self._head, account)

    def _keep_prompt_logprobs(self, number: int, output: RequestOutput) -> None:
        """A stream has them in the first output alone, but each answer begins with the prompt."""
        if self._request.echo and output.prompt_logprobs is not None:
            self._of_prompts[number] = output.prompt_logprobs

    def _logprobs_of(self, number: int, branch: CompletionOutput) -> dict[str, Any] | None:
        """Of what ``branch`` adds to its answer, which ``echo`` begins with the prompt."""
        if self._request.logprobs is None:
            return None
        index = number * self._n + branch.index
        state = self._logprobs.get(index)
        echoed = None
        if state is None:
            echoed = self._of_prompts.get(number)
            tokenizer = self._service.llm.tokenizer
            hidden = tokenizer.special_ids if self._request.skip_special_tokens is not False else ()
            state = self._logprobs[index] = CompletionLogprobs(tokenizer, self._request.logprobs, hidden=hidden)
        before = {} if echoed is None else state.extend(self._prompts[number], echoed, echo=self._echoes[number])
        after = state.extend(branch.token_ids, branch.logprobs or ())
        return {name: before.get(name, []) + values for name, values in after.items()}


async def complete(service: Service, request: CompletionRequest, account: Account) -> Response:
    """Answer one request. Raises ``APIError``."""
    service.check_alive()
    service.check_model(request.model)
    request.check()
    prompts = service.truncated(await prompt_ids(service, request), request.truncate_prompt_tokens, request.max_tokens)
    echoes = prompt_texts(service, request, prompts)
    if request.suffix:
        prompts = await infilled(service, request, prompts)
    room = service.room(prompts, request.max_tokens, "prompt")
    params = request.sampling(room, service.llm.sampling_defaults)
    if request.suffix and (fim := service.llm.tokenizer.fim) is not None:
        params = replace(params, stop_token_ids=[*(request.stop_token_ids or ()), *sorted(fim.ends)])
    answer = CompletionAnswer(service, request, prompts, echoes, account)
    if request.stream:
        return EventStream(answer.events(service.outputs(prompts, params, answer.id, account)), service.closing)
    return answer.whole(await service.final_outputs(prompts, params, answer.id, account))
