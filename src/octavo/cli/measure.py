"""Measuring an ``LLM`` in this process at fixed lengths: random prompts, greedy, end-of-sequence ignored.

Every repetition has prompts of its own (seeded), so that none is answered from the prefix cache. Times are seconds from the moment
at which all requests are handed over.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.engine.llm_engine import Prompt
    from octavo.llm import LLM


@dataclass(frozen=True)
class Load:
    """``num_prompts`` requests at once, each of ``input_len`` prompt tokens and exactly ``output_len`` generated ones."""

    input_len: int
    output_len: int
    num_prompts: int
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if value < least:
                raise ValueError(f"{field.name}={value} is invalid: it must be at least {least}")


@dataclass(frozen=True)
class Run:
    """One repetition. ``ttft_s`` and ``tpot_s`` are medians over the requests; ``tpot_s`` is ``None`` for one-token outputs."""

    e2e_s: float
    ttft_s: float
    tpot_s: float | None
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prefill_tokens_per_s: float
    """Prompt tokens divided by the time until the last request's first token."""


def random_prompts(load: Load, vocabulary: Sequence[int], rep: int) -> list[list[int]]:
    """``num_prompts`` lists of ``input_len`` token ids, the same for the same seed and repetition."""
    draw = random.Random(f"{load.seed}/{rep}")
    return [[draw.choice(vocabulary) for _ in range(load.input_len)] for _ in range(load.num_prompts)]


def run_once(llm: LLM, load: Load, vocabulary: Sequence[int], rep: int) -> Run:
    """One repetition. Raises ``RuntimeError`` if a request failed or came back with another number of tokens."""
    from octavo.decoding.params import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=load.output_len, min_tokens=load.output_len, ignore_eos=True)
    prompts: list[Prompt] = [{"prompt_token_ids": ids} for ids in random_prompts(load, vocabulary, rep)]
    started = time.monotonic()
    outputs = llm.generate(prompts, params)
    e2e_s = time.monotonic() - started
    first, last = [], []
    for output in outputs:
        if output.error or len(output.outputs[0].token_ids) != load.output_len:
            raise RuntimeError(
                f"request {output.request_id} gave {len(output.outputs[0].token_ids)} tokens instead of {load.output_len}: {output.error}"
            )
        assert output.metrics.first_token_s is not None
        assert output.metrics.finished_s is not None
        first.append(output.metrics.first_token_s - started)
        last.append(output.metrics.finished_s - started)
    steps = load.output_len - 1
    num_output = load.num_prompts * load.output_len
    num_input = load.num_prompts * load.input_len
    return Run(
        e2e_s=e2e_s,
        ttft_s=statistics.median(first),
        tpot_s=statistics.median((end - begin) / steps for begin, end in zip(first, last, strict=True)) if steps else None,
        requests_per_s=load.num_prompts / e2e_s,
        output_tokens_per_s=num_output / e2e_s,
        total_tokens_per_s=(num_input + num_output) / e2e_s,
        prefill_tokens_per_s=num_input / max(first),
    )


def run_all(llm: LLM, load: Load, vocabulary: Sequence[int], *, reps: int, warmup: int, tick: Callable[[], None]) -> list[Run]:
    """``reps`` measured repetitions after ``warmup`` unmeasured ones; ``tick`` is called after each."""
    runs = []
    for rep in range(-warmup, reps):
        run = run_once(llm, load, vocabulary, rep)
        if rep >= 0:
            runs.append(run)
        tick()
    return runs


def medians(runs: list[Run]) -> dict[str, float | None]:
    """The median of each figure over the repetitions."""
    columns: dict[str, list[Any]] = {f.name: [getattr(run, f.name) for run in runs] for f in fields(Run)}
    return {name: None if None in values else statistics.median(values) for name, values in columns.items()}


def spreads(runs: list[Run]) -> dict[str, tuple[float, float] | None]:
    """The smallest and the largest of each figure over the repetitions."""
    columns: dict[str, list[Any]] = {f.name: [getattr(run, f.name) for run in runs] for f in fields(Run)}
    return {name: None if None in values else (min(values), max(values)) for name, values in columns.items()}


def as_json(kind: str, load: Load, runs: list[Run], about: dict[str, Any]) -> dict[str, Any]:
    """The record that ``--json`` writes: what was run, on what, every repetition and the medians."""
    return {"benchmark": kind, **about, "load": asdict(load), "median": medians(runs), "runs": [asdict(run) for run in runs]}
