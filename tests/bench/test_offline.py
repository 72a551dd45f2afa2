"""Offline runs on the toy engine: every token has its moment, the figures follow from them, nothing is left behind."""

from __future__ import annotations

import pytest

from octavo.bench.offline import run_offline
from octavo.bench.vocabulary import TokenIds
from octavo.bench.workload import BenchRequest, Workload
from tests.engine.toy import VOCAB, ToyExecutable, toy_engine

IDS = TokenIds(range(1, VOCAB))


@pytest.mark.parametrize(("n", "output_len", "num_blocks"), [(1, 1, 512), (1, 7, 512), (3, 1, 512), (3, 9, 512), (2, 40, 12)])
def test_every_token_has_its_moment(n: int, output_len: int, num_blocks: int) -> None:
    engine = toy_engine(num_blocks)
    requests = Workload(num_prompts=5, input_len=20, output_len=output_len, n=n).requests(IDS, 0)
    finished = []
    run = run_offline(engine, requests, on_finished=lambda: finished.append(1))
    assert len(run.records) == len(finished) == 5
    for record in run.records:
        assert [len(moments) for moments in record.arrivals] == [output_len] * n
        assert record.output_tokens == n * output_len
        assert all(moments == sorted(set(moments)) for moments in record.arrivals)
        assert 0 < record.ttft_s <= record.e2el_s <= run.wall_s
    assert sum(step.num_tokens for step in run.steps) == 5 * n * output_len
    figures = run.figures()
    assert figures["num_steps"] == len(run.steps)
    assert 0 < figures["kv_use_mean"] <= figures["kv_use_peak"] <= 1
    assert figures["engine_overhead"] is None, "the toy keeps no profile"
    assert (figures["num_preemptions"] > 0) == (num_blocks == 12)
    assert figures["prefill_tokens_per_s"] == pytest.approx(100 / figures["prefill_s"])
    assert not engine.has_unfinished_requests
    engine.check_integrity()
    assert engine.scheduler.kv.num_used_blocks == 0


def test_prefix_hits_are_seen() -> None:
    engine = toy_engine()
    run = run_offline(engine, Workload("shared-prefix", 6, 4, 3, 2, 32).requests(IDS, 0))
    assert run.figures()["prefix_hit_tokens"] == 4 * 32
    assert run.figures()["prefix_hit_rate"] == pytest.approx(4 * 32 / (6 * 36))
    assert run_offline(engine, Workload("shared-prefix", 6, 4, 3, 2, 32).requests(IDS, 1)).figures()["prefix_hit_tokens"] == 4 * 32


def test_overhead_is_what_the_kernels_did_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyExecutable, "profile", lambda self: {"linear": 1e-6, "choose": 2e-6})
    run = run_offline(toy_engine(), Workload(num_prompts=2, input_len=4, output_len=4).requests(IDS, 0))
    assert run.overhead == pytest.approx(1 - 3e-6 / run.wall_s)
    assert run.as_json()["kernel_s"] == pytest.approx(3e-6)


def test_a_faulty_request_ends_the_run_and_leaves_nothing() -> None:
    engine = toy_engine()
    engine.model.executable.poisonous_token = 63  # type: ignore[attr-defined]
    requests = [BenchRequest([1, 2, 3], 3, 30), BenchRequest([5, 63], 2, 3)]
    with pytest.raises(RuntimeError, match="bench-1 gave 0 tokens instead of 3: RuntimeError: the poisonous token"):
        run_offline(engine, requests)
    engine.check_integrity()
    with pytest.raises(ValueError, match="empty"):
        run_offline(engine, [BenchRequest([1, 2, 3], 3, 30), BenchRequest([], 0, 3)])
    assert not engine.has_unfinished_requests
    assert engine.scheduler.kv.num_used_blocks == 0
