"""The peers' benchmark: a fixed workload, a fair race that disturbances and failures do not spoil, a report that a run can go on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from benchmarks.peers import machine, run, workload
from benchmarks.peers.environments import Environments, Step
from benchmarks.peers.estimate import TYPICAL_S, estimate_s
from benchmarks.peers.process import Worker
from benchmarks.peers.race import Entrant, Rules, race
from benchmarks.peers.report import Note, Report, Result
from benchmarks.peers.rows import LLAMA_CPP, OCTAVO, OPENVINO, ROWS, VLLM, Times
from benchmarks.peers.variants import VARIANTS, Setting


def test_the_workload_is_a_contract() -> None:
    """Figures taken at different times are compared: these ids must never change."""
    ids = [workload.decode(0), workload.prefill(3), *workload.serving(1)]
    assert [len(prompt) for prompt in ids] == [32, 512] + [128] * 64
    assert sha256(json.dumps(ids).encode()).hexdigest() == "bc02de29d7d90ef7453fd8e3c3b12b80d179342daf60933c65bffac6a296e1a9"
    ids = [workload.beams(rep) for rep in range(2)]
    assert [len(prompt) for prompt in ids] == [512] * 2
    assert sha256(json.dumps(ids).encode()).hexdigest() == "9b9646bddb6c8337425a6c50ce306f12c59acd9665579f7a03c00d81da2fd73a"
    ids = [workload.samples(1), *workload.prefix(2), *workload.context()]
    assert [len(prompt) for prompt in ids] == [512] + [528] * 32 + [1024] * 64
    assert sha256(json.dumps(ids).encode()).hexdigest() == "1acbdf9bf466582ce5dc3e348abfd1d006b9548c5015f9fcd52b3783e0bbc61d"


def test_prompts_share_nothing_but_the_prefix_that_they_should() -> None:
    """A repetition that another's cached keys and values could answer would measure nothing."""
    prompts = (
        [workload.samples(rep) for rep in range(6)] + [workload.beams(rep) for rep in range(6)] + [workload.decode(rep) for rep in range(6)]
    )
    prompts += [p for rep in (*range(6), workload.WARM_UP) for p in workload.serving(rep)] + workload.context()
    heads = [tuple(p[:16]) for p in prompts] + [tuple(workload.prefix(rep)[0][:16]) for rep in range(6)]
    assert len(set(heads)) == len(heads)
    shared = workload.prefix(0)
    assert len({tuple(p[: workload.SHARED_LEN]) for p in shared}) == 1
    assert len({tuple(p[workload.SHARED_LEN :]) for p in shared}) == workload.PREFIX.num_prompts


class Scripted:
    """A session that gives the values it was told, or raises."""

    def __init__(self, values: list[float] | Exception) -> None:
        self.values = values
        self.pids: tuple[int, ...] = ()

    def measure(self, row: str, rep: int) -> dict[str, float]:
        if isinstance(self.values, Exception):
            raise self.values
        return {"value": self.values[rep] if rep < workload.WARM_UP else 0.0}

    def clear(self) -> None: ...
    def stop(self) -> None: ...


def scripted_loads(monkeypatch: pytest.MonkeyPatch, loads: Iterator[float]) -> None:
    monkeypatch.setattr(machine, "wait_for_quiet", lambda patience_s: True)
    monkeypatch.setattr(machine.Watch, "start", lambda self: None)
    monkeypatch.setattr(machine.Watch, "other_cpu", lambda self: next(loads))


def test_disturbed_repetitions_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_loads(monkeypatch, iter([0.5, 0.01, 0.02, 0.9, 0.03]))
    report = Report({})
    race(ROWS["decode"], [Entrant(OCTAVO, "Q4_1", Scripted([0, 1, 2, 3, 4]))], Rules(3), report, lambda line: None)
    [result] = report.results
    assert [r["value"] for r in result.runs] == [1.0, 2.0, 4.0]
    assert [r["value"] for r in result.disturbed] == [0.0, 3.0]


def test_slow_engines_can_get_fewer_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_loads(monkeypatch, iter([0.0, 0.9, 0.0, 0.0, 0.0]))
    report = Report({})
    entrants = [Entrant(engine, "fp32", Scripted([1.0, 2.0, 3.0])) for engine in (OCTAVO, VLLM)]
    race(ROWS["decode"], entrants, Rules(3, reps_of={VLLM: 1}), report, lambda line: None)
    ours, theirs = report.results
    assert [r["value"] for r in ours.runs] == [1.0, 2.0, 3.0]
    assert [r["value"] for r in theirs.runs] == [2.0], "a disturbed one is measured again all the same"


def test_repetitions_of_an_engine_count_before_those_of_a_row() -> None:
    rules = Rules(3, reps_of={VLLM: 1, "decode": 7})
    assert [rules.of(engine, row) for engine in (OCTAVO, VLLM) for row in ("decode", "prefill")] == [7, 3, 1, 1]
    assert run.arguments(["--reps-of", "vLLM=1,decode=7"]).rules.of(OCTAVO, "decode") == 7


def test_a_machine_that_is_never_quiet_gives_the_least_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_loads(monkeypatch, iter([0.5, 0.2, 0.3, 0.9, 0.1, 0.8]))
    report = Report({})
    race(ROWS["decode"], [Entrant(OCTAVO, "Q4_1", Scripted([1.0] * 6))], Rules(3), report, lambda line: None)
    [result] = report.results
    assert [r["other_cpu"] for r in result.runs] == [0.1, 0.2, 0.3]
    assert result.other_cpu == 0.3


def test_a_peer_that_fails_leaves_a_note_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_loads(monkeypatch, iter([0.0] * 10))
    report = Report({})
    entrants = [
        Entrant(OCTAVO, "Q4_1", Scripted([5, 7, 6])),
        Entrant(VLLM, "fp32", Scripted(RuntimeError("out of blocks"))),
        Entrant(LLAMA_CPP, "Q4_0", Scripted([3, 1])),  # the third repetition is an IndexError of the script
    ]
    with pytest.raises(IndexError):
        race(ROWS["decode"], entrants, Rules(3), report, lambda line: None)  # mistakes of our own are not notes
    entrants.pop()
    race(ROWS["decode"], entrants, Rules(3), report, lambda line: None)
    assert [(r.engine, r.value) for r in report.results] == [(OCTAVO, 6)]
    assert report.notes == [Note("decode", VLLM, "fp32", "out of blocks")]


def test_engines_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_loads(monkeypatch, iter([0.0] * 10))
    said: list[str] = []
    entrants = [Entrant(e, "fp32", Scripted([1.0] * 3)) for e in (OCTAVO, VLLM)]
    race(ROWS["decode"], entrants, Rules(3), Report({}), said.append)
    assert [line.split()[1] for line in said] == [OCTAVO, VLLM] * 3


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = Report({"date": "today", "settings": {"reps": 3}})
    report.add(Result("decode", OCTAVO, "Q4_1", [{"value": 2.0, "other_cpu": 0.01}], [{"value": 1.0, "other_cpu": 0.5}]))
    report.add(Result("decode", OCTAVO, "Q4_1", [{"value": 3.0, "other_cpu": 0.02}]))
    report.note(Note("decode", VLLM, "fp32", "why"))
    report.save(path)
    assert Report.load(path) == report
    assert report.value("decode", OCTAVO, "Q4_1") == 3.0
    assert json.loads(path.read_text())["results"][0]["median"] == 3.0
    path.write_text('{"results": []}')
    with pytest.raises(ValueError, match="no report of this benchmark"):
        Report.load(path)
    assert run.measured_earlier(path) is None, "it does not keep a new one from being measured"
    assert run.measured_earlier(tmp_path / "none.json") is None


def planned(report: Report, *argv: str) -> dict[str, list[tuple[str, str]]]:
    return {row: [(v.engine, v.weights) for v in vs] for row, vs in run.plan(run.arguments(list(argv)), report).items()}


def test_a_run_goes_on_with_what_it_lacks() -> None:
    report = Report({})
    everything = planned(report)
    assert list(everything) == [row for row in ROWS if row != "memory"]
    assert set(everything["decode"]) == {(v.engine, v.weights) for v in VARIANTS}
    for row in ROWS.values():
        named = {goal.engine for goal in (*row.must, row.reach) if isinstance(goal, Times)}
        assert row.name == "memory" or named <= {engine for engine, _ in everything[row.name]}, "a goal needs whom it names"
    assert (OCTAVO, "fp32") not in everything["startup"]
    report.add(Result("decode", OPENVINO, "int8", [{"value": 1.0}]))
    assert set(everything["decode"]) - set(planned(report)["decode"]) == {(OPENVINO, "int8")}
    int8 = ("--rows", "decode", "--peers", "OpenVINO", "--weights", "int8")
    assert planned(report, *int8) == {"decode": [(OCTAVO, "int8")]}
    report.add(Result("decode", OCTAVO, "int8", [{"value": 2.0}]))
    assert planned(report, *int8) == {}
    assert planned(report, "--rows", "memory", "--peers", "vLLM") == {
        "requests": [(VLLM, "fp32")],
        "serving": [(OCTAVO, "Q4_1"), (OCTAVO, "fp32")],
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--rows", "decode,nothing"],
        ["--peers", "ollama"],
        ["--reps", "0"],
        ["--reps-of", "vLLM"],
        ["--reps-of", "ollama=1"],
        ["--reps-of", "vLLM=0"],
        ["--weights", "int3"],
    ],
)
def test_what_is_unknown_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.arguments(argv)
    assert argv[0] in capsys.readouterr().err


def test_the_estimate_takes_what_was_measured_before() -> None:
    report = Report({})
    plan = run.plan(run.arguments([]), report)
    typical = estimate_s(plan, Rules(3), None)
    assert 10 * 60 < typical < 30 * 60, "a whole run is to take less than half an hour"
    assert estimate_s(plan, run.arguments(["--reps-of", "vLLM=1,transformers=1"]).rules, None) < typical - 4 * 60
    report.add(Result("requests", VLLM, "fp32", [{"value": 1.0, "wall_s": TYPICAL_S["requests"][VLLM] + 100}]))
    assert estimate_s(plan, Rules(3), report) == pytest.approx(typical + 3 * 100)


def test_the_server_whose_memory_is_read_has_room_for_its_requests_only(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    setting = Setting(Environments(tmp_path, model), 2)
    setting.__dict__["kv_bytes_per_token"] = 10
    assert setting.kv_bytes("serving") == 10 * 64 * 256
    assert setting.kv_bytes("context") > 10 * 64 * (1024 + 32)
    assert setting.kv_bytes("prefix") == setting.kv_bytes("requests") > 10 * 32 * (528 + 32)


def test_a_worker_answers_or_says_why_not(tmp_path: Path) -> None:
    """The real loop, in a child, with a module of this test's own in place of an engine."""
    module = """
import os, sys
from benchmarks.peers.workers.lines import claim_stdout, expect, serve, settings
channel = claim_stdout()
print("noise of an engine"); os.system("echo noise of its child")
def short(rep): expect(3, 4)
serve(channel, {"got": settings()}, {"ok": lambda rep: {"value": rep * 2.0}, "short": short})
"""
    log = tmp_path / "log"
    (tmp_path / "scripted.py").write_text(module)
    environment = {"PYTHONPATH": str(tmp_path)}
    worker = Worker(Path(sys.executable), "scripted", {"model": "m"}, log, environment)
    try:
        assert worker.about == {"got": {"model": "m"}}
        assert worker.measure("ok", 21) == {"value": 42.0}
        with pytest.raises(RuntimeError, match="3 output tokens instead of 4"):
            worker.measure("short", 0)
        with pytest.raises(RuntimeError, match="KeyError"):
            worker.measure("unknown", 0)
        assert worker.measure("ok", 1) == {"value": 2.0}
    finally:
        worker.stop()
    assert "noise of an engine" in log.read_text()
    assert "noise of its child" in log.read_text()
    with pytest.raises(RuntimeError, match="ended; its log is"):
        Worker(Path(sys.executable), "there_is_none", {}, log, environment)


def test_environments_are_made_once_and_a_failure_stops_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fail() -> None:
        raise OSError("no network")

    steps = [
        Step("vllm", "packages", lambda: "vllm" in made, fail),
        Step("openvino", "packages", lambda: "openvino" in made, lambda: made.append("openvino")),
        Step("llamacpp", "build", lambda: True, fail),
    ]
    monkeypatch.setattr(Environments, "steps", lambda self: steps)
    environments = Environments(tmp_path, tmp_path / "model.gguf")
    said: list[str] = []
    assert list(environments.ensure(said.append)) == ["vllm"]
    assert made == ["openvino"]
    assert any("no network" in line for line in said)
    assert environments.ensure(said.append, frozenset({"openvino", "llamacpp"})) == {}
    assert made == ["openvino"]


def test_cpu_time_of_what_is_measured_is_not_others() -> None:
    watch = machine.Watch()
    watch.start()
    sum(i * i for i in range(3_000_000))
    busy, total = machine.cpu_jiffies()
    assert 0.0 <= watch.other_cpu() <= 1.0
    assert 0 < busy < total
    assert machine.peak_memory_mib([]) == 0.0


BUSY = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.4: pass\nprint('done', flush=True); time.sleep(60)"


@pytest.mark.parametrize("own", [True, False])
def test_what_is_launched_while_watching_counts_as_measured(own: bool) -> None:
    children: list[subprocess.Popen[str]] = []
    watch = machine.Watch(lambda: tuple(child.pid for child in children) if own else ())
    watch.start()
    before = machine.jiffies(os.getpid())
    children.append(subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True))
    try:
        assert children[0].stdout is not None
        assert children[0].stdout.readline() == "done\n"
        counted = watch._own_jiffies() - watch._ours - (machine.jiffies(os.getpid()) - before)
    finally:
        children[0].kill()
        children[0].communicate()
    assert (counted >= 35) is own, "0.4 seconds are 40 jiffies"


class Launched(Scripted):
    """Remembers what was called in which order."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__([1.0] * 3)
        self.calls = calls

    def measure(self, row: str, rep: int) -> dict[str, float]:
        self.calls.append("measure")
        return super().measure(row, rep)

    def clear(self) -> None:
        self.calls.append("clear")


def test_a_launch_is_ended_only_after_its_cpu_time_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    scripted_loads(monkeypatch, iter([0.0] * 2))
    monkeypatch.setattr(machine.Watch, "other_cpu", lambda self: calls.append("count") or 0.0)
    race(ROWS["startup"], [Entrant(VLLM, "fp32", Launched(calls))], Rules(2), Report({}), lambda line: None)
    assert calls == ["measure", "clear"] + ["measure", "count", "clear"] * 2
