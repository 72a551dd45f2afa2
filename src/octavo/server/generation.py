"""The road from a checked request to the engine and back: prompts to token ids, room in the context, outputs, accounts.

``Service`` is the one object the endpoints share. It never touches HTTP; it raises ``APIError``.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from octavo.decoding import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.engine.async_llm import AsyncLLM
from octavo.engine.outputs import CompletionOutput, RequestOutput
from octavo.server.errors import APIError, context_too_long, from_engine, invalid, shown
from octavo.text import find_thinking


@dataclass(slots=True)
class Account:
    """What one HTTP request cost; seconds of ``time.monotonic()``."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last_token_s: float | None = None
    branch_block_steps: int = 0
    saved_block_steps: int = 0

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def describe(self) -> str:
        """The part of a log line that speaks of tokens; empty if none were made."""
        if self.first_token_s is None or self.last_token_s is None:
            return f"{self.prompt_tokens} in" if self.prompt_tokens else ""
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        ttft_ms = 1000 * (self.first_token_s - self.started_s)
        total_s = self.last_token_s - self.started_s
        rate = self.output_tokens / total_s if total_s > 0 else 0.0
        saved = f", sharing saved {self.saved_block_steps / self.branch_block_steps:.0%}" if self.branch_block_steps else ""
        return f"{self.prompt_tokens} in{cached}, {self.output_tokens} out, ttft {ttft_ms:.0f} ms, {rate:.1f} tok/s{saved}"


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


Batch = list[tuple[int, RequestOutput]]
"""Outputs that were there together, each with the number of its prompt."""


class Service:
    """The engine as the endpoints see it."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        self.created = int(time.time())
        tokenizer = llm.tokenizer
        self.thinking = find_thinking(llm.chat_template, tokenizer)
        self._bounded = tokenizer.keeps_every_byte
        self._longest_token_bytes = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))
        self._closing: asyncio.Future[None] | None = None

    @property
    def closing(self) -> asyncio.Future[None]:
        """Set when requests must end; belongs to the loop that asks first."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        return self._closing

    def close(self) -> None:
        """End every request that is running (from the event loop)."""
        if not self.closing.done():
            self.closing.set_result(None)

    def check_alive(self) -> None:
        """Raises ``APIError`` 503 when the engine no longer runs or the server closes."""
        if not self.llm.is_running:
            reason = f": {self.llm.error}" if self.llm.error is not None else ""
            raise APIError(503, f"the engine is not running{reason}", code="engine_dead")
        if self.closing.done():
            raise APIError(503, "the server is shutting down", code="server_shutting_down")

    def check_model(self, name: str | None) -> None:
        """Raises ``APIError`` 404 for a model that is not the served one."""
        if name is not None and name != self.llm.model_name:
            raise APIError(
                404,
                f"The model {shown(name)} does not exist here; {shown(self.llm.model_name)} is served.",
                param="model",
                code="model_not_found",
            )

    async def encode(self, texts: list[str], *, add_special_tokens: bool, param: str) -> list[list[int]]:
        """Token ids of each text. A text that could not fit even in the longest tokens is refused without encoding it, also where the
        prompt may be cut: what it costs to serve a request must not depend on what is thrown away."""
        limit = self.llm.max_model_len
        for text in texts:
            if self._bounded and len(text) > limit * self._longest_token_bytes:
                raise context_too_long(-(-len(text) // self._longest_token_bytes), None, limit, param, at_least=True)
        return await self.llm.encode(texts, add_special_tokens=add_special_tokens)

    def truncated(self, prompts: list[list[int]], keep: int | None, max_tokens: int | None) -> list[list[int]]:
        """The last ``keep`` tokens of each prompt; -1 keeps what the context leaves beside ``max_tokens``, ``None`` keeps all."""
        if keep is None:
            return prompts
        if keep == -1:
            keep = self.llm.max_model_len - (1 if max_tokens is None else max_tokens)
        return [prompt[-keep:] for prompt in prompts] if keep > 0 else prompts  # not even one fits: ``room`` says why

    def room(self, prompts: Sequence[Sequence[int]], max_tokens: int | None, param: str) -> int:
        """Output tokens that the context leaves after the longest prompt. Raises ``APIError`` if it is too little or a prompt is empty."""
        limit = self.llm.max_model_len
        room = limit
        needed = 1 if max_tokens is None else max_tokens
        for prompt in prompts:
            if not prompt:
                raise invalid(param, "", "has no tokens; give at least one", code="empty_prompt")
            if len(prompt) + needed > limit:
                raise context_too_long(len(prompt), max_tokens if len(prompt) < limit else None, limit, param)
            room = min(room, limit - len(prompt))
        return room

    async def outputs(
        self, prompts: Sequence[list[int]], params: SamplingParams | BeamSearchParams, request_id: str, account: Account
    ) -> AsyncGenerator[Batch, None]:
        """Run every prompt; closing this ends them all. Raises ``APIError``; what the engine refuses, before the first output."""
        cached = [0] * len(prompts)
        begun = False
        whole = params.output_kind is RequestOutputKind.FINAL_ONLY  # outputs come in the order of their ends, not of their first tokens
        try:
            async with aclosing(self._merged(prompts, params, request_id)) as batches:
                async for batch in batches:
                    if not begun:
                        begun = True
                        account.prompt_tokens = sum(map(len, prompts))
                    account.last_token_s = time.monotonic()
                    for index, output in batch:
                        cached[index] = output.num_cached_tokens
                        for branch in output.outputs:
                            account.output_tokens += len(branch.token_ids)
                            if branch.finish_reason in ("abort", "error"):
                                raise _failure(output, branch)
                        if output.finished:
                            account.branch_block_steps += output.metrics.branch_block_steps
                            account.saved_block_steps += output.metrics.saved_block_steps
                        if output.error is not None:
                            raise APIError(500, f"the request failed: {output.error}", code="request_failed")
                    if account.first_token_s is None or whole:
                        moments = (account.first_token_s, *(output.metrics.first_token_s for _, output in batch))
                        account.first_token_s = min((moment for moment in moments if moment is not None), default=None)
                    account.cached_tokens = sum(cached)
                    yield batch
        except ValueError as error:
            if begun:
                raise
            raise from_engine(error) from error
        except Exception:
            if not self.llm.is_running:
                self.check_alive()
            raise

    async def final_outputs(
        self, prompts: Sequence[list[int]], params: SamplingParams | BeamSearchParams, request_id: str, account: Account
    ) -> list[RequestOutput]:
        """The finished output of every prompt, in order; ``params.output_kind`` is FINAL_ONLY."""
        done: dict[int, RequestOutput] = {}
        async with aclosing(self.outputs(prompts, params, request_id, account)) as batches:
            async for batch in batches:
                done.update(batch)
        if len(done) != len(prompts):
            raise APIError(500, "the engine ended the request without an answer", code="request_failed")
        return [done[i] for i in range(len(prompts))]

    def _generate(
        self, prompt: list[int], params: SamplingParams | BeamSearchParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        return cast(AsyncGenerator[RequestOutput, None], self.llm.generate({"prompt_token_ids": prompt}, params, request_id))

    async def _merged(
        self, prompts: Sequence[list[int]], params: SamplingParams | BeamSearchParams, request_id: str
    ) -> AsyncGenerator[Batch, None]:
        if len(prompts) == 1:
            async with aclosing(self._generate(prompts[0], params, request_id)) as outputs:
                async for output in outputs:
                    yield [(0, output)]
            return
        queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()

        async def pump(index: int, prompt: list[int]) -> None:
            try:
                async with aclosing(self._generate(prompt, params, f"{request_id}-{index}")) as outputs:
                    async for output in outputs:
                        queue.put_nowait((index, output))
                queue.put_nowait((index, None))
            except Exception as error:
                queue.put_nowait((index, error))

        pumps = [asyncio.ensure_future(pump(index, prompt)) for index, prompt in enumerate(prompts)]
        try:
            running = len(pumps)
            while running:
                items = [await queue.get()]
                while not queue.empty():
                    items.append(queue.get_nowait())
                batch: Batch = []
                for index, item in items:
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        running -= 1
                    else:
                        batch.append((index, item))
                if batch:
                    yield batch
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


def _failure(output: RequestOutput, branch: CompletionOutput) -> APIError:
    if branch.finish_reason == "abort":
        return APIError(503, "the request was aborted", code="request_aborted")
    return APIError(500, f"the request failed: {output.error or 'unknown error'}", code="request_failed")
