"""``octavo bench``: the record has what it promises, its figures hang together, and what is impossible is refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from octavo.cli import main
from tests.cli.running import octavo

SMALL = ("--kv-cache-memory-bytes", "64MB", "--max-model-len", "512", "--warmup", "0")


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize(
    ("kind", "options", "described"),
    [
        ("latency", ("--batch-size", "3", "--iterations", "2"), "3 × (24 in, 6 out)"),
        ("throughput", ("--num-prompts", "3", "--iterations", "2", "--n", "2", "--prompts", "text"), "3 × (24 in, 6 out, n = 2)"),
    ],
)
def test_the_record(kind: str, options: tuple[str, ...], described: str, tmp_path: Path) -> None:
    path, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    arguments = ("--input-len", "24", "--output-len", "6", *options, *SMALL, "--json", str(path), "--plot", str(plot))
    done = octavo("bench", kind, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert plot.read_bytes().startswith(b"<?xml")
    record = json.loads(path.read_text())
    branches = 3 * (2 if kind == "throughput" else 1)
    assert record["benchmark"] == kind
    assert record["model"] == "smollm2-135m-instruct"
    assert record["weights"]["formats"].startswith("Q4_1")
    assert record["kv_cache"]["num_tokens"] == 16 * record["kv_cache"]["num_blocks"] > 0
    assert {"octavo", "fingerprint", "isa", "num_threads", "machine", "backend", "date", "command"} <= record.keys()
    assert record["command"].startswith(f"octavo bench {kind} --input-len 24")
    assert (record["workload"]["input_len"], record["workload"]["output_len"], record["workload"]["num_prompts"]) == (24, 6, 3)
    assert len(record["runs"]) == 2
    for run in record["runs"]:
        summary = run["summary"]
        assert 0 < summary["ttft_s"]["max"] <= summary["e2el_s"]["max"] <= run["wall_s"]
        assert summary["output_tokens"] == branches * 6
        assert summary["output_tokens_per_s"] == pytest.approx(branches * 6 / summary["duration_s"])
        assert summary["total_tokens_per_s"] == pytest.approx((branches * 6 + 3 * 24) / summary["duration_s"])
        assert summary["itl_s"]["count"] == branches * 5
        assert 0 < run["kernel_s"] < run["wall_s"]
        assert run["engine_overhead"] == pytest.approx(1 - run["kernel_s"] / run["wall_s"])
        assert {name for name, seconds in run["kernel_s_by_kind"].items() if seconds > 0} >= {"linear", "attention", "choose"}
        assert 0 < run["kv_use_mean"] <= run["kv_use_peak"] < 1
        assert run["num_preemptions"] == 0
    for name in ("engine_overhead", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert record["median"][name] == median(run[name] for run in record["runs"])
    assert record["latency_s"]["ttft"]["count"] == 6
    for word in (described, "TTFT", "TPOT", "ITL", "E2EL", "p99", "tok/s", "engine overhead"):
        assert word in done.stdout


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_more_than_the_context_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", "--input-len", "200", "--output-len", "100", "--max-model-len", "256", *SMALL[:2]]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "300" in err
    assert "256" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["latency", "--input-len", "0"], "input_len=0"),
        (["latency", "--batch-size", "65"], "--max-num-seqs 65"),
        (["latency", "--batch-size", "9", "--n", "8"], "--max-num-seqs 72"),
        (["latency", "--json", "/no/such/folder/out.json"], "/no/such/folder/out.json"),
        (["latency", "--plot", "plot.pdf"], "plot.pdf"),
        (["throughput", "--iterations", "0"], "--iterations 0"),
        (["throughput", "--workload", "file"], "dataset=None"),
        (["throughput", "--workload", "alpaca", "--input-len", "7"], "input_len=7"),
        (["throughput", "--dataset", "/no/such/set.json"], "/no/such/set.json"),
        (["throughput", "--workload", "poems"], "poems"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert expected in err
