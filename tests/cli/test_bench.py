"""``octavo bench``: the record has what it promises and the figures hang together; prompts are the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.measure import Load, Run, medians, random_prompts, spreads
from tests.cli.running import octavo


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize(("kind", "requests"), [("latency", "--batch"), ("throughput", "--num-prompts")])
def test_the_record(kind: str, requests: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.json"
    shape = ("--input-len", "24", "--output-len", "6", requests, "3")
    done = octavo(
        "bench",
        kind,
        *shape,
        "--reps",
        "2",
        "--warmup",
        "1",
        "--kv-cache-memory-bytes",
        "64MB",
        "--max-model-len",
        "512",
        "--json",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    record = json.loads(path.read_text())
    assert record["benchmark"] == kind
    assert record["load"] == {"input_len": 24, "output_len": 6, "num_prompts": 3, "seed": 0}
    assert record["model"] == "smollm2-135m-instruct"
    assert record["weights"]["formats"].startswith("Q4_1")
    assert record["kv_cache"]["num_tokens"] == 16 * record["kv_cache"]["num_blocks"] > 0
    assert {"octavo", "fingerprint", "isa", "num_threads", "machine", "backend"} <= record.keys()
    assert len(record["runs"]) == 2
    for run in record["runs"]:
        assert 0 < run["ttft_s"] < run["e2e_s"]
        assert run["output_tokens_per_s"] == pytest.approx(3 * 6 / run["e2e_s"])
        assert run["total_tokens_per_s"] == pytest.approx(3 * 30 / run["e2e_s"])
        assert 0 < run["tpot_s"] <= run["e2e_s"] / 5
    for name, value in record["median"].items():
        assert value == median(run[name] for run in record["runs"])
    assert "tok/s" in done.stdout
    assert "3 × (24 in, 6 out)" in done.stdout


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_more_than_the_context_is_refused() -> None:
    done = octavo(
        "bench", "latency", "--input-len", "200", "--output-len", "100", "--max-model-len", "256", "--kv-cache-memory-bytes", "64MB"
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "300" in done.stderr
    assert "256" in done.stderr


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.integers(-2, 5))
def test_prompts_are_seeded_and_new_in_each_repetition(input_len: int, num_prompts: int, seed: int, rep: int) -> None:
    load, vocabulary = Load(input_len, 1, num_prompts, seed), range(1000, 50_000)
    prompts = random_prompts(load, vocabulary, rep)
    assert [len(prompt) for prompt in prompts] == [input_len] * num_prompts
    assert all(token in vocabulary for prompt in prompts for token in prompt)
    assert prompts == random_prompts(load, vocabulary, rep)
    if input_len > 8:
        assert prompts != random_prompts(load, vocabulary, rep + 1)
        assert prompts != random_prompts(Load(input_len, 1, num_prompts, seed + 1), vocabulary, rep)


def test_medians_of_one_token_outputs_have_no_time_per_token() -> None:
    runs = [Run(e2e, e2e, None, 1 / e2e, 1 / e2e, 3 / e2e, 2 / e2e) for e2e in (0.5, 0.25, 1.0)]
    assert medians(runs)["tpot_s"] is None
    assert spreads(runs)["tpot_s"] is None
    assert medians(runs)["ttft_s"] == 0.5
    assert spreads(runs)["e2e_s"] == (0.25, 1.0)
