"""Loads on an engine in this process: all requests at once, stepped here, every token's moment noted, kernels timed by themselves.

*Engine overhead* is 1 - (time in the kernels ÷ wall time): what scheduling, building arrays, taking tokens and making text cost. The
kernels' time is the executable's own profile, which two looks at the clock for each instruction make (about 0.02 ms of a step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from typing import Any

from octavo.bench.records import RequestRecord
from octavo.bench.summary import Summary, summarize
from octavo.bench.workload import BenchRequest
from octavo.decoding.params import RequestOutputKind, SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepSample:
    """A step: when it ended, the output tokens it brought, and how full the cache was after it."""

    end_s: float
    duration_s: float
    num_tokens: int
    num_running: int
    num_waiting: int
    kv_blocks_used: int


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """``kernel_s`` by kind of instruction, empty where the backend keeps no profile. ``wall_s`` begins when requests are handed over."""

    records: list[RequestRecord]
    steps: list[StepSample]
    wall_s: float
    kernel_s: dict[str, float]
    num_preemptions: int
    num_blocks: int

    @property
    def overhead(self) -> float | None:
        return 1 - sum(self.kernel_s.values()) / self.wall_s if self.kernel_s else None

    @property
    def prefill_s(self) -> float:
        """Until every request had its first token."""
        return max(record.first_s for record in self.records if record.ok)

    def figures(self) -> dict[str, Any]:
        """What only an engine in this process can tell, for the record."""
        used = [step.kv_blocks_used for step in self.steps]
        prompt_tokens = sum(record.prompt_tokens for record in self.records)
        decoded = sum(sum(moment > self.prefill_s for moment in moments) for record in self.records for moments in record.arrivals)
        decode_s = self.wall_s - self.prefill_s
        cached = sum(record.cached_tokens or 0 for record in self.records)
        return {
            "wall_s": self.wall_s,
            "kernel_s": sum(self.kernel_s.values()) if self.kernel_s else None,
            "kernel_s_by_kind": self.kernel_s,
            "engine_overhead": self.overhead,
            "num_steps": len(self.steps),
            "prefill_s": self.prefill_s,
            "prefill_tokens_per_s": prompt_tokens / self.prefill_s,
            "decode_tokens_per_s": decoded / decode_s if decoded else None,
            "kv_blocks": self.num_blocks,
            "kv_blocks_peak": max(used),
            "kv_use_peak": max(used) / self.num_blocks,
            "kv_use_mean": sum(u * s.duration_s for u, s in zip(used, self.steps, strict=True))
            / sum(s.duration_s for s in self.steps)
            / self.num_blocks,
            "num_preemptions": self.num_preemptions,
            "prefix_hit_tokens": cached,
            "prefix_hit_rate": cached / prompt_tokens,
            "max_running": max(step.num_running for step in self.steps),
        }

    def summary(self) -> Summary:
        return summarize(self.records)

    def as_json(self) -> dict[str, Any]:
        return {**self.figures(), "summary": self.summary().as_json()}

    def timeline(self) -> list[dict[str, Any]]:
        return [asdict(step) for step in self.steps]


def run_offline(
    engine: LLMEngine, requests: SequenceOf[BenchRequest], *, seed: int = 0, on_finished: Callable[[], None] = lambda: None
) -> OfflineRun:
    """Hands over all requests, greedy (at temperature 1 where one prompt has several answers), end-of-sequence ignored.

    Raises ``RuntimeError`` if a request fails or gives another number of tokens; whatever ends it, nothing is left in the engine.
    """
    executable, scheduler = engine.model.executable, engine.scheduler
    preemptions = scheduler.num_preemptions
    records: dict[str, RequestRecord] = {}
    steps: list[StepSample] = []
    executable.set_profiling(True)
    started_s = time.perf_counter()
    try:
        for i, request in enumerate(requests):
            prompt: Any = request.prompt if isinstance(request.prompt, str) else {"prompt_token_ids": request.prompt}
            engine.add_request(f"bench-{i}", prompt, _params(request, seed + i))
            records[f"bench-{i}"] = RequestRecord(0.0, [[] for _ in range(request.n)], request.num_prompt_tokens)
        moments = _Moments(records)
        moments.note(0.0, _alive(scheduler))
        now_s = time.perf_counter() - started_s
        while engine.has_unfinished_requests:
            began_s = now_s
            outputs = engine.step()
            now_s = time.perf_counter() - started_s
            num_tokens = moments.note(now_s, _alive(scheduler))
            for output in outputs:
                record = records[output.request_id]
                record.output_tokens = sum(len(branch.token_ids) for branch in output.outputs)
                record.cached_tokens, record.error = output.num_cached_tokens, output.error
                for branch in output.outputs:
                    if branch.token_ids and not record.arrivals[branch.index]:  # a branch that began and ended within the step
                        record.arrivals[branch.index].append(now_s)
                        num_tokens += 1
                on_finished()
            running, waiting, used = len(scheduler.running), len(scheduler.waiting), scheduler.kv.num_used_blocks
            steps.append(StepSample(now_s, now_s - began_s, num_tokens, running, waiting, used))
        wall_s = time.perf_counter() - started_s
        kernel_s = executable.profile()
    finally:
        executable.set_profiling(False)
        for request_id in records:
            engine.abort_request(request_id)
    for request, (request_id, record) in zip(requests, records.items(), strict=True):
        if record.error or record.output_tokens != request.output_len * request.n:
            raise RuntimeError(
                f"{request_id} gave {record.output_tokens} tokens instead of {request.output_len * request.n}: {record.error or 'no error'}"
            )
    preemptions = scheduler.num_preemptions - preemptions
    return OfflineRun(list(records.values()), steps, wall_s, kernel_s, preemptions, scheduler.kv.num_blocks)


def _alive(scheduler: Scheduler) -> Iterable[Sequence]:
    return (*scheduler.running, *scheduler.waiting)


class _Moments:
    """Finds out from the scheduler's queues which branches a step has brought on, as requests are asked for their final output alone."""

    def __init__(self, records: Mapping[str, RequestRecord]) -> None:
        self._records = records
        self._alive: dict[tuple[str, int], int] = {}
        """Output tokens of each branch that the last step left alive."""

    def note(self, now_s: float, sequences: Iterable[Sequence]) -> int:
        """After a step that left ``sequences`` alive; those that are no more had their last token. Returns how many tokens it brought."""
        alive = {(s.request.request_id, s.branch): s.num_output_tokens for s in sequences}
        num_tokens = 0
        for key in {**self._alive, **alive}:
            before, after = self._alive.get(key, 0), alive.get(key)
            if after is None or after > before:
                self._records[key[0]].arrivals[key[1]].append(now_s)
                num_tokens += 1
        self._alive = alive
        return num_tokens


def _params(request: BenchRequest, seed: int) -> SamplingParams:
    return SamplingParams(
        n=request.n,
        temperature=0.0 if request.n == 1 else 1.0,
        seed=seed,
        max_tokens=request.output_len,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
