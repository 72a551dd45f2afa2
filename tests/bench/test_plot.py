"""Plots: files of the kind asked for, rates and counts that add up, and a sentence where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.offline import StepSample
from octavo.bench.plot import in_flight, plot_run, rates
from octavo.bench.records import RequestRecord
from tests.bench.records import records

RECORDS = [RequestRecord(0.1 * i, [[0.1 * i + 0.2 + 0.05 * t for t in range(20)]], 5, 20) for i in range(8)]


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_files(suffix: str, begins: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"plot.{suffix}"
    steps = [StepSample(0.1 * (i + 1), 0.1, 8, 8, 0, i) for i in range(10)]
    plot_run(path, RECORDS, "eight streams", steps)
    data = path.read_bytes()
    assert data.startswith(begins)
    assert len(data) > 5000


def test_a_run_that_failed_is_drawn_empty(tmp_path: Path) -> None:
    plot_run(tmp_path / "plot.svg", [RequestRecord(0.0, [[]], error="HTTP 500")], "nothing came")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), max_size=50))
def test_rates_add_up(points: list[tuple[float, float]]) -> None:
    middles, per_s = rates([m for m, _ in points], [w for _, w in points], 10.0)
    assert len(middles) == len(per_s)
    assert sum(per_s) * (middles[1] - middles[0]) == pytest.approx(sum(w for _, w in points), abs=1e-9)


@given(st.lists(records(), max_size=10), st.floats(0, 200))
def test_requests_under_way(data: list[RequestRecord], moment: float) -> None:
    assert in_flight(data, [moment]) == [sum(r.ok and r.sent_s < moment <= r.last_s for r in data)]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"octavo\[plot\]"):
        plot_run(tmp_path / "plot.svg", RECORDS, "")
