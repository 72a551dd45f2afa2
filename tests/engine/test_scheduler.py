"""The scheduler's policy, on ids and counts alone."""

from __future__ import annotations

import pytest

from octavo.decoding import SamplingParams
from octavo.engine.outputs import RequestMetrics
from octavo.engine.scheduler import Scheduler
from octavo.engine.scheduler_output import SchedulerOutput
from octavo.engine.sequence import Request, RequestStatus, Sequence
from octavo.engine.step_time import MIN_CHUNK_TOKENS, StepTimeModel
from octavo.kv import KVCacheManager, scope_hash

ROOT = scope_hash(model="test")


def make(num_blocks: int = 100, max_num_seqs: int = 8, budget: int = 64, max_step_ms: float = 1e9) -> Scheduler:
    return Scheduler(KVCacheManager(num_blocks, 16), max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_step_ms=max_step_ms)


def sequence(arrival: int, num_tokens: int, n: int = 1) -> Sequence:
    prompt = [arrival + 1] * num_tokens
    request = Request(str(arrival), None, prompt, SamplingParams(n=n), arrival, 1000, 0, RequestMetrics(0.0))
    return Sequence(request, 0, ROOT, 16)


def step(scheduler: Scheduler) -> SchedulerOutput:
    """One step in which every sequence that reaches its end gets a new token."""
    output = scheduler.schedule()
    chooses = [e.sequence for e in output.scheduled if e.chooses]
    scheduler.update(output, {})
    for s in chooses:
        s.append(1000 + s.num_tokens)
    scheduler.check_integrity()
    return output


def plan(output: SchedulerOutput) -> dict[int, int]:
    return {e.sequence.request.arrival: e.num_scheduled_tokens for e in output.scheduled}


def test_prompts_come_in_chunks_beside_decodes_first_come_first_served() -> None:
    scheduler = make()
    for arrival, length in enumerate([10, 100, 30]):
        scheduler.add(sequence(arrival, length))
    assert plan(step(scheduler)) == {0: 10, 1: 54}
    assert plan(step(scheduler)) == {0: 1, 1: 46, 2: 17}
    assert plan(step(scheduler)) == {0: 1, 1: 1, 2: 13}


def test_the_prompt_share_of_a_step_is_bounded_in_time_while_others_decode() -> None:
    scheduler = make(budget=512, max_step_ms=60.0)
    scheduler.step_time.observe(100.0, 200, 0)  # half a millisecond per prompt token
    scheduler.step_time.observe(10.0, 0, 3)
    scheduler.add(sequence(0, 400))
    assert plan(step(scheduler)) == {0: 400}  # nobody waits for it
    scheduler.add(sequence(1, 400))
    assert plan(step(scheduler)) == {0: 1, 1: 100}
    scheduler.max_step_ms = 1.0
    assert plan(step(scheduler)) == {0: 1, 1: MIN_CHUNK_TOKENS}


def test_step_time_is_learnt() -> None:
    model = StepTimeModel()
    assert model.prompt_tokens_within(50.0) is None
    for _ in range(50):
        model.observe(20.0, 0, 8)
        model.observe(70.0, 100, 8)
    assert model.prompt_tokens_within(70.0) == pytest.approx(100, abs=2)


def test_the_latest_arrival_gives_way_and_waits_at_the_front() -> None:
    scheduler = make(num_blocks=5)
    for arrival in range(2):
        scheduler.add(sequence(arrival, 31))
    scheduler.add(sequence(2, 5))
    step(scheduler)
    assert [s.request.arrival for s in scheduler.running] == [0, 1, 2]
    step(scheduler)
    output = step(scheduler)  # positions 32 need a third block each
    assert [s.request.arrival for s in output.preempted] == [2, 1]
    assert [s.request.arrival for s in scheduler.waiting] == [1, 2]
    assert scheduler.waiting[0].status is RequestStatus.PREEMPTED
    assert plan(output) == {0: 1}


def test_a_victim_that_had_tokens_in_the_same_step_loses_them() -> None:
    scheduler = make(num_blocks=5, budget=17)
    late = sequence(9, 15)
    scheduler.add(late)
    step(scheduler)
    scheduler.add(sequence(0, 64))
    for _ in range(3):
        assert plan(step(scheduler)) == {9: 1, 0: 16}
    output = step(scheduler)  # the prompt's last block takes one of the decoding sequence's
    assert output.preempted == [late]
    assert plan(output) == {0: 16}
    assert scheduler.kv.num_used_blocks == 4


def test_one_that_outgrows_the_whole_pool_ends_with_length() -> None:
    scheduler = make(num_blocks=2)
    scheduler.add(sequence(0, 16))
    for _ in range(17):
        assert not step(scheduler).outgrown
    output = step(scheduler)
    assert [s.finish_reason for s in output.outgrown] == ["length"]
    assert not scheduler.has_work
    assert scheduler.kv.num_used_blocks == 0


@pytest.mark.parametrize(
    ("num_tokens", "n", "fits"), [(63, 1, True), (64, 1, False), (47, 2, True), (48, 2, False), (15, 4, True), (15, 5, False)]
)
def test_refused_at_the_door_only_what_could_never_fit(num_tokens: int, n: int, fits: bool) -> None:
    scheduler = make(num_blocks=4)
    if fits:
        scheduler.add(sequence(0, num_tokens, n))
    else:
        with pytest.raises(ValueError, match=f"{num_tokens} tokens and its {n} branch"):
            scheduler.add(sequence(0, num_tokens, n))
        assert not scheduler.has_work


def test_branches_beyond_max_num_seqs_wait_with_their_blocks() -> None:
    scheduler = make(max_num_seqs=2)
    parent = sequence(0, 20, n=4)
    scheduler.add(parent)
    step(scheduler)
    children = [scheduler.fork(parent, branch) for branch in (1, 2, 3)]
    assert [s.status for s in children] == [RequestStatus.RUNNING, RequestStatus.WAITING, RequestStatus.WAITING]
    assert scheduler.kv.num_used_blocks == 2
    scheduler.check_integrity()
    scheduler.finish(parent, "stop")
    step(scheduler)
    assert children[1].status is RequestStatus.RUNNING
