"""What a benchmark prints and writes: a table of latencies, the figures under it, and the JSON record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.bench.offline import OfflineRun
    from octavo.bench.records import RequestRecord
    from octavo.bench.workload import Workload

NAMES = {"ttft": "TTFT  time to first token", "tpot": "TPOT  per output token", "itl": "ITL   between tokens", "e2el": "E2EL  end to end"}
PLOT_SUFFIXES = (".png", ".svg")


def check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Before minutes of measuring, not after. Raises ``ValueError``, ``OSError``."""
    if json_file is not None:
        json_file.touch()
    if plot_file is not None:
        from octavo.bench.plot import check_matplotlib

        if plot_file.suffix.lower() not in PLOT_SUFFIXES:
            raise ValueError(f"--plot {plot_file} is invalid: the file's name must end in {' or '.join(PLOT_SUFFIXES)}")
        check_matplotlib()
        plot_file.touch()


def write_json(json_file: Path | None, record: dict[str, Any]) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=1) + "\n")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def print_title(text: str) -> None:
    from rich.console import Console

    Console().print(text, style="bold", highlight=False)


def print_latencies(records: Sequence[RequestRecord]) -> None:
    """Milliseconds."""
    from rich.console import Console
    from rich.table import Table

    from octavo.bench.summary import LATENCIES, Spread, latencies

    table = Table("ms", "mean", "median", "p95", "p99", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    values = latencies(records)
    for name in LATENCIES:
        if (spread := Spread.of(values[name])) is not None:
            table.add_row(
                NAMES[name], *(number(1e3 * v) for v in (spread.mean, spread.median, spread.p95, spread.p99, spread.max))
            )  # fmt: skip
    Console().print(table)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def offline_record(
    kind: str, workload: Workload, prompts: str, runs: Sequence[OfflineRun], about: dict[str, Any], warmup: int
) -> dict[str, Any]:
    """What was run, on what, every repetition, the latencies of all of them together and the medians of their figures."""
    from octavo.bench.summary import LATENCIES, Spread, latencies

    values = latencies([record for run in runs for record in run.records])
    spreads = {name: Spread.of(values[name]) for name in LATENCIES}
    return {
        "benchmark": kind,
        **about,
        "workload": {**workload.as_json(), "prompts": prompts},
        "warmup": warmup,
        "latency_s": {name: None if spread is None else asdict(spread) for name, spread in spreads.items()},
        "median": medians([flat(run) for run in runs]),
        "runs": [run.as_json() for run in runs],
    }


def flat(run: OfflineRun) -> dict[str, float | None]:
    """The numbers of a run that have a median over repetitions."""
    summary = run.summary()
    rates = {name: getattr(summary, name) for name in ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")}
    return {**rates, **{name: value for name, value in run.figures().items() if value is None or isinstance(value, int | float)}}


def medians(figures: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The median of each figure; ``None`` where a repetition has none."""
    columns = {name: [figure[name] for figure in figures] for name in figures[0]}
    return {name: None if None in values else statistics.median(v for v in values if v is not None) for name, values in columns.items()}


def print_offline(kind: str, workload: Workload, runs: Sequence[OfflineRun], about: dict[str, Any]) -> None:
    """Latencies of all repetitions together; below, medians of the repetitions and their ranges."""
    print_title(f"{kind}: {workload.describe()}, {about['model']}, {about['isa']}, {about['num_threads']} threads")
    print_latencies([record for run in runs for record in run.records])
    figures = [flat(run) for run in runs]

    def ranged(name: str, unit: str, scale: float = 1.0) -> str | None:
        values = [value * scale for figure in figures if (value := figure[name]) is not None]
        if len(values) < len(figures):
            return None
        spread = f"  ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
        return f"{number(statistics.median(values))} {unit}{spread}"

    rows = {
        "prefill": ranged("prefill_tokens_per_s", "tok/s"),
        "decode": ranged("decode_tokens_per_s", "tok/s"),
        "output": ranged("output_tokens_per_s", "tok/s"),
        "total": ranged("total_tokens_per_s", "tok/s"),
        "requests": ranged("requests_per_s", "1/s"),
        "KV cache": f"{ranged('kv_use_peak', '% at most', 100)} of {about['kv_cache']['num_blocks']:,} blocks",
        "preemptions": ranged("num_preemptions", ""),
        "prefix hits": ranged("prefix_hit_rate", "% of prompt tokens", 100),
        "engine overhead": ranged("engine_overhead", "% of the time", 100),
    }
    wanted = (
        ("prefill", "decode", "engine overhead")
        if kind == "latency"
        else ("output", "total", "requests", "KV cache", "preemptions", "prefix hits", "engine overhead")
    )
    print_rows([(name, text.strip()) for name in wanted if (text := rows[name]) is not None])
