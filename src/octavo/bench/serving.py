"""Loads on a server that speaks the OpenAI API: requests sent at their moments, streamed, every arrival noted.

A server that refuses a field of ours (``ignore_eos`` is not OpenAI's) is asked again without it, once, before anything is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from octavo.bench.events import AnswerReader, EventSplitter
from octavo.bench.http import HTTPFault, Refusal, Server, get_json, request, what_it_said
from octavo.bench.records import RequestRecord
from octavo.bench.workload import BenchRequest

Endpoint = Literal["completions", "chat"]
PATHS: dict[str, str] = {"completions": "/completions", "chat": "/chat/completions"}

OPTIONAL = ("ignore_eos", "stream_options", "seed", "temperature")
"""Fields that a server may refuse, the likeliest first."""


@dataclass(frozen=True)
class Target:
    """A model on a server. ``refused``: fields that the server does not take."""

    server: Server
    model: str
    endpoint: Endpoint = "completions"
    timeout_s: float = 600.0
    refused: frozenset[str] = frozenset()

    def body(self, ask: BenchRequest) -> dict[str, Any]:
        """Greedy unless one prompt has several answers, which would all be the same."""
        fields: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0 if ask.n == 1 else 1.0,
            "ignore_eos": True,
        }
        if self.endpoint == "chat":
            fields["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            fields["prompt"] = ask.prompt
        fields["max_completion_tokens" if "max_tokens" in self.refused else "max_tokens"] = ask.output_len
        if ask.n > 1:
            fields |= {"n": ask.n, "seed": 0}
        return {name: value for name, value in fields.items() if name not in self.refused}


async def only_model(server: Server) -> str:
    """The name of the model that is served. Raises ``ValueError`` if there is not exactly one, ``HTTPFault``."""
    listed = await get_json(server, "/models")
    names = [str(entry["id"]) for entry in listed.get("data") or []]
    if len(names) != 1:
        raise ValueError(f"{server.base_url} serves {len(names)} models ({', '.join(names) or 'none'}): say which with --model")
    return names[0]


async def negotiated(target: Target, probe: BenchRequest) -> Target:
    """The target with the fields that it refuses left out, after one request that it answered. Raises ``HTTPFault``."""
    while True:
        try:
            record = RequestRecord(0.0)
            await _stream(target, probe, record, time.perf_counter())
            return target
        except Refusal as refusal:
            if refusal.status not in (400, 422):
                raise
            candidates = [name for name in (*OPTIONAL, "max_tokens") if name not in target.refused and name in target.body(probe)]
            named = [name for name in candidates if name in refusal.said]
            if not named and not _complains_of_fields(refusal.said):
                raise
            drop = named or [name for name in candidates if name != "max_tokens"][:1]
            if not drop:
                raise
            target = Target(target.server, target.model, target.endpoint, target.timeout_s, target.refused | set(drop))


def _complains_of_fields(said: str) -> bool:
    return any(
        word in said.lower() for word in ("extra", "unknown", "unrecognized", "unexpected", "unsupported", "not supported", "additional")
    )


async def ask(target: Target, what: BenchRequest, start_s: float, record: RequestRecord | None = None) -> RequestRecord:
    """One request, its moments in seconds since ``start_s``. Never raises for what the server does: the record says it."""
    record = record or RequestRecord(0.0)
    record.sent_s = time.perf_counter() - start_s
    record.prompt_tokens = what.num_prompt_tokens
    try:
        async with asyncio.timeout(target.timeout_s):
            await _stream(target, what, record, start_s)
    except HTTPFault as fault:
        record.error = str(fault)
    except TimeoutError:
        record.error = f"no answer within {target.timeout_s:g} s"
    return record


async def _stream(target: Target, what: BenchRequest, record: RequestRecord, start_s: float) -> None:
    async with request(target.server, "POST", PATHS[target.endpoint], target.body(what)) as answer:
        if answer.status != 200:
            raise Refusal(answer.status, what_it_said(await answer.body()))
        splitter, reader = EventSplitter(), AnswerReader(record, what.output_len)
        moment_s = start_s
        async for moment_s, piece in answer.pieces():
            for event in splitter.push(piece):
                reader.take(moment_s - start_s, event)
            if reader.done:
                break
        for event in splitter.close():
            reader.take(moment_s - start_s, event)
        reader.finish()


async def run_serving(
    target: Target,
    requests: Sequence[BenchRequest],
    times_s: Sequence[float],
    *,
    max_concurrency: int | None = None,
    on_finished: Callable[[], None] = lambda: None,
) -> list[RequestRecord]:
    """Sends request i at ``times_s[i]``, or when fewer than ``max_concurrency`` are under way; its own clock starts when it is sent."""
    room = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    start_s = time.perf_counter()

    async def one(what: BenchRequest, time_s: float) -> RequestRecord:
        await asyncio.sleep(max(0.0, time_s - (time.perf_counter() - start_s)))
        async with room:
            record = await ask(target, what, start_s)
        on_finished()
        return record

    return list(await asyncio.gather(*(one(what, time_s) for what, time_s in zip(requests, times_s, strict=True))))
