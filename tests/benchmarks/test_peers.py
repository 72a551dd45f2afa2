"""The peers' benchmark: a fixed workload, an honest table, repetitions that disturbed ones do not spoil."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from benchmarks.peers import machine, run, workload
from benchmarks.peers.report import LLAMA_CPP, OCTAVO, Report, Result, fill, markdown


def test_the_workload_is_a_contract() -> None:
    """Figures taken at different times are compared: these ids must never change."""
    ids = [workload.decode(0), workload.prefill(3), *workload.serving(1)]
    assert [len(prompt) for prompt in ids] == [32, 512] + [128] * 64
    assert sha256(json.dumps(ids).encode()).hexdigest() == "bc02de29d7d90ef7453fd8e3c3b12b80d179342daf60933c65bffac6a296e1a9"
    assert len({tuple(prompt) for rep in range(8) for prompt in workload.serving(rep)}) == 8 * 64


def about(**settings: object) -> dict[str, object]:
    return {
        "machine": {"cpu": "a CPU", "cores": 2},
        "versions": {"octavo": "0.1.0", "llama.cpp": "b1", "llama-cpp-python": "0.3.36"},
        "settings": {"model": "m.gguf", "threads": 2, "reps": 3, **settings},
    }


def rates(*values: float, other_cpu: float = 0.01) -> list[dict[str, float]]:
    return [{"tok_s": value, "other_cpu": other_cpu} for value in values]


def test_the_table_has_medians_and_ratios() -> None:
    report = Report(about(llama_parallel=32))
    report.results = [
        Result("serving", OCTAVO, rates(590.0, 610.0, 600.0)),
        Result("serving", LLAMA_CPP, rates(200.0, 100.0, 900.0, other_cpu=0.03)),
        Result("offline", OCTAVO, rates(700.0)),
    ]
    report.peak_memory_mib = {OCTAVO: 400.0, LLAMA_CPP: 800.0}
    text = markdown(report)
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]] for line in text.splitlines() if line.startswith("|")
    }
    assert rows["64 requests at once over HTTP, 128 in, 128 out: output tok/s"] == ["600", "200", "3.00 ×"]
    assert rows["the same 64 in one Python process: output tok/s"] == ["700", "–", ""]
    assert rows["peak memory of the server under that load, MiB"] == ["400", "800", "2.00 ×"]
    assert "at most 3.0% of the CPU" in text
    assert not any("prefill" in row for row in rows)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_readme_is_filled_between_its_markers_only(language: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    report = Report(about(), [Result("decode", OCTAVO, rates(100.0)), Result("decode", LLAMA_CPP, rates(80.0))])
    for _ in range(2):
        fill(readme, markdown(report, language))
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench -->\n| |")
    assert text.endswith("\n<!-- /bench -->\nafter\n")
    assert text.count("1.25 ×") == 1
    assert "old" not in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="no <!-- bench -->"):
        fill(readme, "x")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_can_be_filled(name: str, tmp_path: Path) -> None:
    copy = tmp_path / name
    copy.write_text((run.ROOT / name).read_text())
    fill(copy, "the table")
    assert "<!-- bench -->\nthe table\n<!-- /bench -->" in copy.read_text()


def test_disturbed_repetitions_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Iterator[float] = iter([0.5, 0.01, 0.02, 0.9, 0.03])
    monkeypatch.setattr(machine, "wait_for_quiet", lambda: True)
    monkeypatch.setattr(machine.Watch, "start", lambda self: None)
    monkeypatch.setattr(machine.Watch, "other_cpu", lambda self: next(loads))
    report = Report(about())
    run.race("decode", {OCTAVO: (lambda rep: {"tok_s": float(rep)}, ())}, 3, report)
    [result] = report.results
    assert [r["tok_s"] for r in result.runs] == [1.0, 2.0, 4.0]
    assert [r["tok_s"] for r in result.disturbed] == [0.0, 3.0]


def test_a_machine_that_is_never_quiet_gives_the_least_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.5, 0.2, 0.3, 0.9, 0.1, 0.8])
    monkeypatch.setattr(machine, "wait_for_quiet", lambda: False)
    monkeypatch.setattr(machine.Watch, "start", lambda self: None)
    monkeypatch.setattr(machine.Watch, "other_cpu", lambda self: next(loads))
    report = Report(about())
    run.race("decode", {OCTAVO: (lambda rep: {"tok_s": 1.0}, ())}, 3, report)
    [result] = report.results
    assert [r["other_cpu"] for r in result.runs] == [0.1, 0.2, 0.3]
    assert result.other_cpu == 0.3


def test_cpu_time_of_ours_is_not_others() -> None:
    watch = machine.Watch()
    watch.start()
    sum(i * i for i in range(3_000_000))
    busy, total = machine.cpu_jiffies()
    assert 0.0 <= watch.other_cpu() <= 1.0
    assert 0 < busy < total
    assert machine.peak_memory_mib([]) == 0.0
