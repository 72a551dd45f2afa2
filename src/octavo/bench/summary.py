"""From records to figures: mean, median, p95 and p99 of each latency, throughput, goodput, and errors by name.

Percentiles interpolate linearly between the ranks on either side (rank q · (count - 1)), as NumPy does by default. Goodput is the rate of
requests that kept every objective they were given, as in DistServe (Zhong et al., OSDI 2024): a request that failed kept none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from octavo.bench.records import RequestRecord

LATENCIES = ("ttft", "tpot", "itl", "e2el")
OBJECTIVES = ("ttft", "tpot", "e2el")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in ascending order; ``share`` from 0 to 1. Raises ``ValueError`` for no values."""
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    rank = share * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    mean: float
    median: float
    p95: float
    p99: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        ordered = sorted(values)
        if not ordered:
            return None
        median, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
        return cls(math.fsum(ordered) / len(ordered), median, p95, p99, ordered[-1], len(ordered))


def latencies(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Every value of each latency, in seconds, of the requests that succeeded."""
    good = [record for record in records if record.ok]
    return {
        "ttft": [record.ttft_s for record in good],
        "tpot": [tpot for record in good if (tpot := record.tpot_s) is not None],
        "itl": [gap for record in good for gap in record.itl_s],
        "e2el": [record.e2el_s for record in good],
    }


def parse_goodput(texts: Iterable[str]) -> dict[str, float]:
    """``["ttft:200", "tpot:50 e2el:3000"]`` in milliseconds as ``{"ttft": 0.2, …}`` in seconds. Raises ``ValueError``."""
    objectives: dict[str, float] = {}
    for word in [word for text in texts for word in re.split(r"[\s,]+", text.strip()) if word]:
        match = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)(?:ms)?", word)
        if match is None or match[1].lower() not in OBJECTIVES or float(match[2]) <= 0:
            raise ValueError(f"--goodput {word!r} is invalid: write {', '.join(f'{name}:MS' for name in OBJECTIVES)} with milliseconds")
        objectives[match[1].lower()] = float(match[2]) / 1e3
    return objectives


def keeps(record: RequestRecord, objectives: Mapping[str, float]) -> bool:
    """Whether the request met every objective (seconds by name). One-token outputs have no TPOT and cannot miss it."""
    if not record.ok:
        return False
    values = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2el_s}
    return all((value := values[name]) is None or value <= most for name, most in objectives.items())


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. ``duration_s``: from the first request's sending to the last token. Rates are per second of it."""

    duration_s: float
    num_requests: int
    num_ok: int
    errors: dict[str, int]
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    counted_by: dict[str, int]
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    goodput_share: float | None
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2el_s: Spread | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(records: Sequence[RequestRecord], objectives: Mapping[str, float] | None = None) -> Summary:
    """Raises ``ValueError`` if there are no records."""
    if not records:
        raise ValueError("there is nothing to summarise: no request was sent")
    good = [record for record in records if record.ok]
    begin_s = min(record.sent_s for record in records)
    duration_s = max((record.last_s for record in good), default=begin_s) - begin_s
    values = latencies(records)
    prompt_tokens, output_tokens = (sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good))
    cached = [record.cached_tokens for record in good]
    kept = sum(keeps(record, objectives) for record in records) if objectives else None

    def rate(count: int) -> float:
        return count / duration_s if duration_s > 0 else 0.0

    return Summary(
        duration_s=duration_s,
        num_requests=len(records),
        num_ok=len(good),
        errors=dict(Counter(record.error or "nothing was generated" for record in records if not record.ok).most_common()),
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(c for c in cached if c is not None) if any(c is not None for c in cached) else None,
        output_tokens=output_tokens,
        counted_by=dict(Counter(record.counted_by for record in good)),
        requests_per_s=rate(len(good)),
        output_tokens_per_s=rate(output_tokens),
        total_tokens_per_s=rate(prompt_tokens + output_tokens),
        goodput_per_s=None if kept is None else rate(kept),
        goodput_share=None if kept is None else kept / len(records),
        **{f"{name}_s": Spread.of(values[name]) for name in LATENCIES},
    )
