"""Latencies and figures, computed once more by other means: NumPy and the statistics module, straight from the moments."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.records import RequestRecord
from octavo.bench.summary import Spread, latencies, parse_goodput, percentile, summarize
from tests.bench.records import records

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200)


@given(values, st.floats(0, 1))
def test_percentiles_are_numpys(data: list[float], share: float) -> None:
    assert percentile(sorted(data), share) == pytest.approx(float(np.percentile(data, 100 * share)), rel=1e-9, abs=1e-9)


@given(values)
def test_a_spread_is_what_statistics_says(data: list[float]) -> None:
    spread = Spread.of(data)
    assert spread is not None
    assert spread.mean == pytest.approx(statistics.fmean(data))
    assert spread.median == pytest.approx(statistics.median(data))
    assert (spread.max, spread.count) == (max(data), len(data))
    if len(data) > 1:
        cuts = statistics.quantiles(data, n=100, method="inclusive")
        assert spread.p95 == pytest.approx(cuts[94], rel=1e-9, abs=1e-9)
        assert spread.p99 == pytest.approx(cuts[98], rel=1e-9, abs=1e-9)


def test_nothing_has_no_spread() -> None:
    assert Spread.of([]) is None
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="no request"):
        summarize([])


def test_four_latencies_of_one_request() -> None:
    """Sent at 10, tokens at 10.5, 10.7, 11.1; the last arrival brought two of the four tokens."""
    record = RequestRecord(10.0, [[10.5, 10.7, 11.1]], prompt_tokens=5, output_tokens=4)
    assert record.ttft_s == pytest.approx(0.5)
    assert record.e2el_s == pytest.approx(1.1)
    assert record.tpot_s == pytest.approx(0.6 / 3)
    assert record.itl_s == pytest.approx([0.2, 0.4])
    assert record.gaps() == [(10.5, 10.7), (10.7, 11.1)]
    assert RequestRecord(0.0, [[1.0]], output_tokens=1).tpot_s is None
    assert not RequestRecord(0.0, [[]], error="HTTP 500").ok


def test_branches_run_side_by_side() -> None:
    record = RequestRecord(0.0, [[1.0, 2.0, 3.0], [1.0, 2.5, 5.0]], output_tokens=6)
    assert record.ttft_s == 1.0
    assert record.e2el_s == 5.0
    assert record.tpot_s == pytest.approx(4.0 / 2)
    assert sorted(record.itl_s) == [1.0, 1.0, 1.5, 2.5]


@given(st.lists(records(), min_size=1, max_size=20), st.dictionaries(st.sampled_from(["ttft", "tpot", "e2el"]), st.floats(0.01, 20)))
def test_summary_against_a_second_count(data: list[RequestRecord], objectives: dict[str, float]) -> None:
    summary = summarize(data, objectives)
    good = [record for record in data if record.error is None]
    assert summary.num_ok == len(good)
    assert sum(summary.errors.values()) == len(data) - len(good)
    assert set(summary.errors) == {record.error for record in data if record.error}
    tokens = sum(record.output_tokens for record in good)
    last = max((moment for record in good for branch in record.arrivals for moment in branch), default=None)
    if last is None:
        assert summary.output_tokens_per_s == summary.requests_per_s == 0
        assert summary.ttft_s is None
        return
    span = last - min(record.sent_s for record in data)
    assert summary.duration_s == pytest.approx(span)
    assert summary.output_tokens_per_s * span == pytest.approx(tokens)
    assert summary.total_tokens_per_s * span == pytest.approx(tokens + sum(record.prompt_tokens for record in good))
    assert summary.requests_per_s * span == pytest.approx(len(good))
    firsts = [min(branch[0] for branch in record.arrivals) - record.sent_s for record in good]
    assert summary.ttft_s is not None
    assert summary.ttft_s.mean == pytest.approx(np.mean(firsts))
    gaps = [gap for record in good for branch in record.arrivals for gap in np.diff(branch)]
    assert sorted(latencies(data)["itl"]) == pytest.approx(sorted(gaps))
    if not objectives:
        assert summary.goodput_per_s is None
        return
    kept = 0
    for record, ttft in zip(good, firsts, strict=True):
        begin, end = (f(moment for branch in record.arrivals for moment in branch) for f in (min, max))
        steps = record.output_tokens / len(record.arrivals) - 1
        met = ttft <= objectives.get("ttft", np.inf) and end - record.sent_s <= objectives.get("e2el", np.inf)
        kept += bool(met and (steps <= 0 or (end - begin) / steps <= objectives.get("tpot", np.inf)))
    assert summary.goodput_share == kept / len(data)
    assert summary.goodput_per_s == pytest.approx(kept / span)


def test_objectives_as_they_are_written() -> None:
    assert parse_goodput(["ttft:200", "tpot:50ms e2el:3000.5"]) == pytest.approx({"ttft": 0.2, "tpot": 0.05, "e2el": 3.0005})
    assert parse_goodput(["TTFT:200,tpot:50"]) == pytest.approx({"ttft": 0.2, "tpot": 0.05})
    assert parse_goodput([]) == {}
    for wrong in ("itl:5", "ttft", "ttft:-1", "ttft:0", "ttft:x", "ttft:200 oops"):
        with pytest.raises(ValueError, match="--goodput"):
            parse_goodput([wrong])
