"""Smooth streams: what the readers of running streams notice while a long prompt arrives.

Some streams generate; the gaps between their tokens are taken for a while without, then from the moment at which a long prompt is sent
until its first token is there, then without again, and so on. The two are compared by their 99th percentiles, the second counting only
what overlaps the prompt's arrival, so that a quiet rest of a run cannot dilute it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from octavo.bench.http import HTTPFault
from octavo.bench.records import RequestRecord
from octavo.bench.serving import Target, ask
from octavo.bench.summary import Spread
from octavo.bench.workload import BenchRequest

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Gaps in seconds between the streams' tokens, before a long prompt's arrival and during it."""

    without_s: list[float]
    during_s: list[float]
    long_ttft_s: float
    long_cached_tokens: int | None

    @property
    def ratio(self) -> float:
        """Of the 99th percentiles."""
        without, during = Spread.of(self.without_s), Spread.of(self.during_s)
        assert without is not None
        assert during is not None
        return during.p99 / without.p99

    def as_json(self) -> dict[str, Any]:
        spreads = {"itl_without_s": Spread.of(self.without_s), "itl_during_s": Spread.of(self.during_s)}
        return {
            **{name: None if spread is None else asdict(spread) for name, spread in spreads.items()},
            "p99_ratio": self.ratio,
            "long_ttft_s": self.long_ttft_s,
            "long_cached_tokens": self.long_cached_tokens,
        }


def pooled(disturbances: Sequence[Disturbance]) -> Disturbance:
    """All gaps of several together; the long prompts' mean time to the first token."""
    cached = [d.long_cached_tokens for d in disturbances if d.long_cached_tokens is not None]
    return Disturbance(
        [gap for d in disturbances for gap in d.without_s],
        [gap for d in disturbances for gap in d.during_s],
        sum(d.long_ttft_s for d in disturbances) / len(disturbances),
        sum(cached) if cached else None,
    )


async def run_smooth(
    target: Target,
    streams: Sequence[BenchRequest],
    long_prompts: Sequence[BenchRequest],
    *,
    quiet_s: float,
    on_finished: Callable[[], None] = lambda: None,
) -> list[Disturbance]:
    """Lets each of ``long_prompts`` arrive beside ``streams``, ``quiet_s`` apart. Raises ``HTTPFault`` if a stream ends too soon."""
    start_s = time.perf_counter()
    records = [RequestRecord(0.0) for _ in streams]
    tasks = [asyncio.create_task(ask(target, what, start_s, record)) for what, record in zip(streams, records, strict=True)]
    try:
        while not all(any(record.arrivals) for record in records):
            _check(tasks, records)
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(quiet_s / 4)  # the last streams' own prompts are over, and so is what they held up
        found = []
        for what in long_prompts:
            begin_s = time.perf_counter() - start_s
            await asyncio.sleep(quiet_s)
            _check(tasks, records)
            sent_s = time.perf_counter() - start_s
            arriving = await ask(target, what, start_s)
            if not arriving.ok:
                raise HTTPFault(f"the long prompt failed: {arriving.error}")
            await asyncio.sleep(quiet_s / 4)  # gaps that were open when its token came are over now
            _check(tasks, records)
            gaps = [gap for record in records for gap in record.gaps()]
            without = [later - earlier for earlier, later in gaps if begin_s <= earlier and later <= sent_s]
            during = [later - earlier for earlier, later in gaps if later > sent_s and earlier < arriving.first_s]
            if not without or not during:
                raise HTTPFault(f"too few tokens came within {quiet_s:g} s: give a longer --quiet-s")
            found.append(Disturbance(without, during, arriving.ttft_s, arriving.cached_tokens))
            on_finished()
        return found
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _check(tasks: Sequence[asyncio.Task[RequestRecord]], records: Sequence[RequestRecord]) -> None:
    for task, record in zip(tasks, records, strict=True):
        if task.done():
            raise HTTPFault(f"a stream has ended before the measuring did: {record.error or f'after {record.output_tokens} tokens'}")
