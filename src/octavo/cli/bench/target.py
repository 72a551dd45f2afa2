"""``octavo bench serve`` behind its flags: what is sent, the run with its progress bar, the tables and the record."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.bench.records import RequestRecord
from octavo.bench.serving import Target, negotiated, only_model, run_serving
from octavo.bench.smooth import Disturbance, pooled, run_smooth
from octavo.bench.summary import Spread, summarize
from octavo.bench.vocabulary import COMMON_IDS, EncodedWords, EnglishWords, TokenIds, Vocabulary
from octavo.bench.workload import BenchRequest, Workload
from octavo.cli.bench.options import Prompts
from octavo.cli.bench.show import number, print_latencies, print_rows, print_title, write_json
from octavo.cli.facts import run_facts
from octavo.cli.progress import counting, fetch


@dataclass(frozen=True)
class Words:
    """What prompts are made of. ``encode`` is there if a tokenizer is."""

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]] | None


def words_for(prompts: Prompts, endpoint: str, tokenizer: str | None) -> Words:
    """Raises ``ValueError`` for a tokenizer that there is none of."""
    if tokenizer is None:
        return Words(TokenIds(COMMON_IDS) if prompts is Prompts.RANDOM else EnglishWords(), None)
    from octavo.text import load_tokenizer
    from octavo.weights import open_checkpoint

    loaded = load_tokenizer(open_checkpoint(fetch(tokenizer)))
    if prompts is Prompts.RANDOM:
        return Words(TokenIds([i for i in range(loaded.vocab_size) if i not in loaded.special_ids]), loaded.encode)
    return Words(EnglishWords() if endpoint == "chat" else EncodedWords(loaded.encode), loaded.encode)


@dataclass
class Load:
    """``target`` gets the model's name and loses what the server refuses once it has been reached."""

    target: Target
    workload: Workload
    prompts: Prompts
    words: Words
    warmup: int

    def requests(self, rep: int) -> list[BenchRequest]:
        return self.workload.requests(self.words.vocabulary, rep, self.words.encode, as_text=self.target.endpoint == "chat")

    def make(self, num_tokens: int, output_len: int, name: str) -> BenchRequest:
        """A request of ``num_tokens`` tokens; ``name`` seeds it."""
        draw = random.Random(f"{self.workload.seed}/{name}")
        prompt = self.words.vocabulary.join(self.words.vocabulary.draw(draw, num_tokens))
        return BenchRequest(prompt, num_tokens, output_len, self.workload.n)

    async def reach(self) -> None:
        """Raises ``HTTPFault``, or ``ValueError`` if the server has several models."""
        name = self.target.model or await only_model(self.target.server)
        self.target = await negotiated(replace(self.target, model=name), self.make(8, 2, "probe"))


def run_load(load: Load, requests: Sequence[BenchRequest], times_s: Sequence[float], max_concurrency: int | None) -> list[RequestRecord]:
    async def run(tick: Callable[[], None]) -> list[RequestRecord]:
        await load.reach()
        first = load.requests(-1)[: load.warmup] if load.warmup else []
        await run_serving(load.target, first, [0.0] * len(first), max_concurrency=max_concurrency)
        return await run_serving(load.target, requests, times_s, max_concurrency=max_concurrency, on_finished=tick)

    with counting("Measuring serve", len(requests)) as tick:
        return asyncio.run(run(tick))


def run_smooth_load(load: Load, num_streams: int, long_prompt_len: int, quiet_s: float, arrivals: int) -> list[Disturbance]:
    input_len, output_len = load.workload.input_len or 32, load.workload.output_len or 4000
    streams = [load.make(input_len, output_len, f"stream {i}") for i in range(num_streams)]
    longs = [load.make(long_prompt_len, 1, f"long {i}") for i in range(arrivals)]

    async def run(tick: Callable[[], None]) -> list[Disturbance]:
        await load.reach()
        return await run_smooth(load.target, streams, longs, quiet_s=quiet_s, on_finished=tick)

    with counting("Measuring smooth", arrivals) as tick:
        return asyncio.run(run(tick))


def _facts(load: Load) -> dict[str, Any]:
    return {
        **run_facts(),
        "base_url": load.target.server.base_url,
        "model": load.target.model,
        "endpoint": load.target.endpoint,
        "refused_fields": sorted(load.target.refused),
    }


def report_load(
    load: Load,
    records: Sequence[RequestRecord],
    arrivals: dict[str, Any],
    objectives: dict[str, float],
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    summary = summarize(records, objectives)
    title = f"serve: {load.workload.describe()}, {load.target.model} at {load.target.server.base_url}"
    print_title(title)
    if summary.num_ok:
        print_latencies(records)
    rows = [
        ("requests", f"{summary.num_ok} of {summary.num_requests} in {number(summary.duration_s)} s, {number(summary.requests_per_s)} 1/s"),
        ("output", f"{number(summary.output_tokens_per_s)} tok/s ({summary.output_tokens:,} tokens{_counting(summary.counted_by)})"),
        ("total", f"{number(summary.total_tokens_per_s)} tok/s ({summary.prompt_tokens:,} tokens in)"),
    ]
    if summary.cached_tokens is not None:
        rows.append(("prefix hits", f"{summary.cached_tokens:,} prompt tokens"))
    if summary.goodput_per_s is not None and summary.goodput_share is not None:
        wanted = ", ".join(f"{name} ≤ {1e3 * most:g} ms" for name, most in objectives.items())
        rows.append(("goodput", f"{number(summary.goodput_per_s)} 1/s, {100 * summary.goodput_share:.1f} % of requests ({wanted})"))
    rows += [("failed", f"{count} × {what}") for what, count in summary.errors.items()]
    print_rows(rows)
    record = {
        "benchmark": "serve",
        **_facts(load),
        "workload": {**load.workload.as_json(), "prompts": load.prompts.value},
        "arrivals": arrivals,
        "objectives_s": objectives,
        "summary": summary.as_json(),
        "requests": [_request(record) for record in records],
    }
    write_json(json_file, record)
    if plot_file is not None:
        from octavo.bench.plot import plot_run

        plot_run(plot_file, records, title)


def _counting(counted_by: dict[str, int]) -> str:
    """A remark where not the server itself has counted all of them."""
    others = {name: count for name, count in counted_by.items() if name != "usage"}
    return "".join(f"; of {count} requests by {'their ' if name == 'length' else ''}{name}" for name, count in others.items())


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "sent_s": record.sent_s,
        "arrivals_s": record.arrivals,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "counted_by": record.counted_by,
        "error": record.error,
    }


def report_smooth(load: Load, found: Sequence[Disturbance], json_file: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    print_title(f"smooth: {load.target.model} at {load.target.server.base_url}")
    table = Table("ITL of the streams, ms", "median", "p95", "p99", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    together = pooled(found)
    for name, gaps in (("without the long prompt", together.without_s), ("while it arrives", together.during_s)):
        spread = Spread.of(gaps)
        assert spread is not None
        table.add_row(name, *(number(1e3 * value) for value in (spread.median, spread.p95, spread.p99, spread.max)))
    Console().print(table)
    each = f" (each: {', '.join(number(d.ratio) for d in found)})" if len(found) > 1 else ""
    print_rows([("p99 ratio", f"{number(together.ratio)}{each}"), ("its TTFT", f"{number(together.long_ttft_s)} s")])
    write_json(
        json_file,
        {
            "benchmark": "smooth",
            **_facts(load),
            "together": together.as_json(),
            "each": [disturbance.as_json() for disturbance in found],
        },
    )


__all__ = ["Load", "Words", "report_load", "report_smooth", "run_load", "run_smooth_load", "words_for"]
