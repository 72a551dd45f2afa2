"""``octavo bench``: the record has what it promises, its figures hang together, and what is impossible is refused at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import pytest

from octavo.cli import main
from tests.bench.stub import Stub, stub_server
from tests.cli.running import octavo
from tests.cli.test_serve import served

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
        (["throughput", "--workload", "smooth"], "smooth"),
        (["serve", "--base-url", "localhost"], "localhost"),
        (["serve", "--base-url", "http://127.0.0.1:9"], "no connection"),
        (["serve", "--request-rate", "0"], "request_rate=0"),
        (["serve", "--burstiness", "-1"], "burstiness=-1"),
        (["serve", "--goodput", "itl:5"], "itl:5"),
        (["serve", "tpot:5"], "tpot:5"),
        (["serve", "--endpoint", "chat", "--prompts", "random"], "--endpoint chat"),
        (["serve", "--tokenizer", "no-such-model"], "no-such-model"),
        (["startup", "--iterations", "0"], "--iterations 0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert expected in err


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


def test_serving_is_measured_and_recorded(stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "serve.json", tmp_path / "serve.png"
    arguments = ["bench", "serve", "--base-url", stub.url, "--num-prompts", "6", "--input-len", "9", "--output-len", "5"]
    arguments += ["--request-rate", "100", "--max-concurrency", "3", "--goodput", "ttft:5000", "tpot:0.001"]
    assert main([*arguments, "--json", str(path), "--plot", str(plot)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for word in ("6 × (9 in, 5 out)", "plain", "TTFT", "p99", "goodput", "0.0 % of requests", "30 tokens"):
        assert word in out, out
    assert plot.read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert record["model"] == "plain"
    assert record["arrivals"] == {"request_rate": 100.0, "burstiness": 1.0, "max_concurrency": 3}
    assert record["objectives_s"] == pytest.approx({"ttft": 5.0, "tpot": 1e-6})
    assert {"octavo", "machine", "date", "command"} <= record.keys()
    summary = record["summary"]
    assert (summary["num_ok"], summary["output_tokens"], summary["prompt_tokens"], summary["counted_by"]) == (6, 30, 66, {"usage": 6})
    assert len(record["requests"]) == 6
    assert summary["ttft_s"]["mean"] == pytest.approx(fmean(r["arrivals_s"][0][0] - r["sent_s"] for r in record["requests"]))
    assert len(stub.asked) == 8, "a probe, a warm-up and six"


def test_errors_are_counted_and_named(stub: Stub, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "serve", "--base-url", stub.url, "--endpoint", "chat", "--num-prompts", "4", "--output-len", "3"]
    assert main([*arguments, "--model", "plain"]) == 0
    assert "failed" not in capfd.readouterr().out
    assert main([*arguments, "--model", "busy"]) == 2
    assert "overloaded" in capfd.readouterr().err
    assert main([*arguments, "--model", "fails_after_some"]) == 0
    out = capfd.readouterr().out
    assert "2 of 4" in out
    assert "failed" in out
    assert "2 × HTTP 503" in out


def test_smooth_streams(stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smooth.json"
    arguments = ["bench", "serve", "--base-url", stub.url, "--model", "stalls", "--workload", "smooth", "--streams", "2", "--arrivals", "2"]
    assert main([*arguments, "--long-prompt-len", "50", "--quiet", "0.3", "--json", str(path)]) == 0
    assert "p99 ratio" in capfd.readouterr().out
    record = json.loads(path.read_text())
    assert len(record["each"]) == 2
    together = record["together"]
    assert together["p99_ratio"] == pytest.approx(together["itl_during_s"]["p99"] / together["itl_without_s"]["p99"])
    lengths = {len(body["prompt"]) for body in stub.asked if body["model"] == "stalls"}
    assert lengths == {8, 32, 50}


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_our_own_server(capfd: pytest.CaptureFixture[str]) -> None:
    with served("--max-model-len", "1024") as (_, banner):
        url = re.search(r"API +(\S+)", banner)
        assert url is not None
        arguments = ["bench", "serve", "--base-url", url[1], "--num-prompts", "4", "--output-len", "7", "--n", "2"]
        for more in (["--input-len", "20"], ["--endpoint", "chat", "--workload", "alpaca"]):
            assert main([*arguments, *more]) == 0
            out = capfd.readouterr().out
            assert "4 of 4 in" in out
            assert "(56 tokens)" in out
        arguments = [*arguments[:4], "--workload", "smooth", "--streams", "2", "--output-len", "900"]
        assert main([*arguments, "--long-prompt-len", "300", "--arrivals", "1", "--quiet", "0.3"]) == 0
        assert "p99 ratio" in capfd.readouterr().out


@pytest.mark.model
def test_starts_cold_and_warm(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    done = octavo(
        "bench", "startup", "--model", str(smollm2_path), "--iterations", "1", "--kv-cache-memory-bytes", "64MB", "--json", str(path)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [(s["way"], s["cold"]) for s in record["starts"]] == [(way, cold) for way in ("generate", "serve") for cold in (True, False)]
    for start in record["starts"]:
        assert 0.05 < start["first_token_s"] < 120
        assert (start["ready_s"] is not None) == (start["way"] == "serve")
    assert "octavo serve, warm: until the first token" in done.stdout
    assert record["flags"] == "--kv-cache-memory-bytes 64000000"


def test_a_start_that_fails_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear all,\n" * 100)
    assert main(["bench", "startup", "--model", str(path), "--iterations", "1"]) == 2
    assert "letter.gguf" in capfd.readouterr().err
