"""Plots of a run, with matplotlib (the extra ``plot``): how the latencies are distributed, and what happened when."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.bench.records import RequestRecord
from octavo.bench.summary import LATENCIES, latencies

if TYPE_CHECKING:
    from octavo.bench.offline import StepSample

_BUCKETS = 100


def check_matplotlib() -> None:
    """Raises ``ValueError`` that says how to get it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'octavo[plot]'") from error


def rates(moments: Sequence[float], weights: Sequence[float], end_s: float) -> tuple[list[float], list[float]]:
    """(middle of each bucket, sum of the weights per second in it) of up to 100 buckets from 0 to ``end_s``."""
    width = end_s / _BUCKETS
    sums = [0.0] * _BUCKETS
    for moment, weight in zip(moments, weights, strict=True):
        sums[min(_BUCKETS - 1, max(0, int(moment / width)))] += weight / width
    return [(i + 0.5) * width for i in range(_BUCKETS)], sums


def in_flight(records: Sequence[RequestRecord], moments: Sequence[float]) -> list[int]:
    """How many requests had been sent and were not over at each of ``moments``."""
    begun = sorted(record.sent_s for record in records if record.ok)
    ended = sorted(record.last_s for record in records if record.ok)
    return [bisect_left(begun, moment) - bisect_left(ended, moment) for moment in moments]


def plot_run(path: Path, records: Sequence[RequestRecord], title: str, steps: Sequence[StepSample] = ()) -> None:
    """Four cumulative distributions above, output rate and requests (or KV blocks) over time below. Raises ``ValueError``."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([list(LATENCIES), ["timeline"] * len(LATENCIES)])
    values = latencies(records)
    for name in LATENCIES:
        _distribution(axes[name], name, values[name])
    _timeline(axes["timeline"], records, steps)
    figure.savefig(path, dpi=120)


def _distribution(axes: Any, name: str, values_s: Sequence[float]) -> None:
    ordered = sorted(1e3 * value for value in values_s)
    axes.set(title=name.upper(), xlabel="ms", ylim=(0, 1.02))
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3)
    if not ordered:
        return
    axes.step([ordered[0], *ordered], [i / len(ordered) for i in range(len(ordered) + 1)], where="post")
    for share in (0.5, 0.99):
        axes.axhline(share, color="grey", linewidth=0.6, linestyle=":")


def _timeline(axes: Any, records: Sequence[RequestRecord], steps: Sequence[StepSample]) -> None:
    good = [record for record in records if record.ok]
    if not good:
        return
    moments = [moment for record in good for branch in record.arrivals for moment in branch]
    weights = [
        record.output_tokens / sum(map(len, record.arrivals)) for record in good for branch in record.arrivals for _ in branch
    ]  # tokens that came together are counted where they came
    end_s = max(record.last_s for record in good) or 1e-9
    middles, per_s = rates(moments, weights, end_s)
    axes.plot(middles, per_s, label="output tokens per second")
    axes.set(xlabel="seconds", ylabel="tok/s", xlim=(0, end_s), ylim=(0, None))
    axes.grid(alpha=0.3)
    beside = axes.twinx()
    if steps:
        beside.plot([s.end_s for s in steps], [s.kv_blocks_used for s in steps], color="tab:orange", alpha=0.8, label="KV blocks in use")
    beside.plot(middles, in_flight(good, middles), color="tab:green", alpha=0.8, label="requests under way")
    beside.set(ylim=(0, None))
    lines = [*axes.get_lines(), *beside.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], loc="upper right")
