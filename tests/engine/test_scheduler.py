"""The scheduler's policy, on ids and counts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from octavo.bench.summary import percentile
from octavo.config import EngineConfig
from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.engine.outputs import RequestMetrics
from octavo.engine.scheduler import Scheduler
from octavo.engine.scheduler_output import SchedulerOutput
from octavo.engine.sequence import Request, RequestStatus, Sequence
from octavo.engine.step_time import MIN_CHUNK_TOKENS, READING_TOKENS, StepTimeModel
from octavo.kv import KVCacheManager, scope_hash

ROOT = scope_hash(model="test")


def make(num_blocks: int = 100, max_num_seqs: int = 8, budget: int = 64, max_step_ms: float = 1e9, max_slowdown: float = 1e9) -> Scheduler:
    return Scheduler(
        KVCacheManager(num_blocks, 16),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_step_ms=max_step_ms,
        max_slowdown=max_slowdown,
    )


def sequence(arrival: int, num_tokens: int, n: int = 1, kind: RequestOutputKind = RequestOutputKind.DELTA) -> Sequence:
    prompt = [arrival + 1] * num_tokens
    request = Request(str(arrival), None, prompt, SamplingParams(n=n, output_kind=kind), arrival, 10_000, 0, RequestMetrics(0.0))
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


def test_the_prompt_share_of_a_step_is_bounded_in_time_while_others_read_along() -> None:
    scheduler = make(budget=512, max_step_ms=60.0)
    scheduler.step_time.observe(100.0, 200, [(0, 200)])  # half a millisecond per prompt token
    scheduler.step_time.observe(10.0, 1, [])
    scheduler.add(sequence(0, 400))
    assert plan(step(scheduler)) == {0: 400}  # nobody waits for it
    scheduler.add(sequence(1, 400))
    assert plan(step(scheduler)) == {0: 1, 1: 100}
    scheduler.max_slowdown = 3.0
    assert plan(step(scheduler)) == {0: 1, 1: 40}
    scheduler.max_step_ms = 1.0
    assert plan(step(scheduler)) == {0: 1, 1: MIN_CHUNK_TOKENS}


def test_who_waits_for_the_end_alone_delays_nobody() -> None:
    scheduler = make(budget=512, max_step_ms=20.0, max_slowdown=2.0)
    scheduler.step_time.observe(100.0, 200, [(0, 200)])
    scheduler.step_time.observe(10.0, 1, [])
    scheduler.add(sequence(0, 10, kind=RequestOutputKind.FINAL_ONLY))
    step(scheduler)
    scheduler.add(sequence(1, 400))
    assert plan(step(scheduler)) == {0: 1, 1: 400}
    scheduler.add(sequence(2, 400))
    assert plan(step(scheduler)) == {0: 1, 1: 1, 2: 20}  # but who reads along does


def test_many_prompts_weigh_more_than_few_streams() -> None:
    scheduler = make(num_blocks=1000, budget=512, max_slowdown=2.0)
    scheduler.step_time.observe(100.0, 200, [(0, 200)])
    scheduler.step_time.observe(10.0, 1, [])
    scheduler.add(sequence(0, 10))
    step(scheduler)
    for arrival in range(1, 5):
        scheduler.add(sequence(arrival, 400))
    assert plan(step(scheduler)) == {0: 1, 1: 80}
    scheduler.max_num_seqs = 3  # two of them have no place yet
    assert plan(step(scheduler)) == {0: 1, 1: 40}


def test_step_time_is_learnt() -> None:
    model = StepTimeModel()
    assert model.prompt_tokens_within(50.0) is None
    assert model.decode_ms(8) is None
    for _ in range(50):
        model.observe(20.0, 8, [])
        model.observe(70.0, 108, [(0, 100)])
    assert model.prompt_tokens_within(50.0) == pytest.approx(100, abs=2)
    assert model.decode_ms(8) == pytest.approx(20.0)
    for _ in range(50):
        model.observe(60.0, 24, [])
    assert [model.decode_ms(n) for n in (0, 2, 16, 24, 99)] == pytest.approx([0.0, 5.0, 40.0, 60.0, 60.0])


def test_what_a_token_costs_at_a_depth_is_learnt_and_kept() -> None:
    def cost_ms(start: int, count: int) -> float:
        return 0.4 * count + 0.0003 * (READING_TOKENS * start + count * (start + count / 2))

    model = StepTimeModel()
    model.observe(cost_ms(0, 100), 100, [(0, 100)])
    start = 100
    while start < 4000:
        count = model.prompt_tokens_within(10.0, start)
        assert count is not None
        assert cost_ms(start, count) < 13.0 or count == MIN_CHUNK_TOKENS
        model.observe(cost_ms(start, count), count, [(start, count)])
        start += count
    for depth in (0, 1000, 4000):
        count = model.prompt_tokens_within(30.0, depth)
        assert count is not None
        assert cost_ms(depth, count) == pytest.approx(30.0, rel=0.25)
    for _ in range(20):  # another machine, three times slower
        model.observe(3 * cost_ms(500, 20), 20, [(500, 20)])
    count = model.prompt_tokens_within(90.0, 500)
    assert count is not None
    assert 3 * cost_ms(500, count) == pytest.approx(90.0, rel=0.1)


@dataclass
class Machine:
    """A machine of its own laws: a prompt's token takes the more the further in it lies, and what lies before is read once; with noise."""

    base_ms: float
    each_ms: float
    token_ms: float
    depth_ms: float
    reading_tokens: float
    noise: float
    seed: int

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)

    def step_ms(self, output: SchedulerOutput) -> float:
        ms = self.base_ms
        for entry in output.scheduled:
            depth_ms = self.depth_ms * entry.start / 1000
            tokens = entry.num_scheduled_tokens
            ms += self.each_ms + depth_ms if tokens == 1 else tokens * self.token_ms + (self.reading_tokens + tokens) * depth_ms
        return ms * self._rng.lognormvariate(0.0, self.noise)


def run_until(scheduler: Scheduler, machine: Machine, done: Callable[[], bool]) -> list[float]:
    durations = []
    while not done():
        output = scheduler.schedule()
        durations.append(machine.step_ms(output))
        scheduler.step_time.observe(durations[-1], output.num_tokens, output.prompt_chunks)
        chosen = [e.sequence for e in output.scheduled if e.chooses]
        scheduler.update(output, {})
        for s in chosen:
            s.append(7)
        assert len(durations) < 20_000
    return durations


@pytest.mark.parametrize("seed", range(24))
def test_a_long_prompt_beside_eight_streams_leaves_them_smooth(seed: int) -> None:
    """On a machine whose smallest chunk lets it, once it has been met: 4,000 tokens that come at most double the p99 of a step."""
    rng = Random(seed)
    base_ms = 10 ** rng.uniform(0, 2)
    each_ms = base_ms * rng.uniform(0.03, 0.3)
    depth, reading_tokens = rng.uniform(0.0, 1.0), rng.uniform(0.0, 6.0)
    smallest = (
        MIN_CHUNK_TOKENS * (1 + 4 * depth) + reading_tokens * 4 * depth
    )  # chunk, at the end of the prompt, in tokens at its beginning
    token_ms = rng.uniform(0.1, 0.6) * (base_ms + 8 * each_ms) / smallest
    machine = Machine(base_ms, each_ms, token_ms, depth * token_ms, reading_tokens, rng.uniform(0.0, 0.08), seed)
    scheduler = make(num_blocks=3000, max_num_seqs=16, budget=512, max_slowdown=EngineConfig().max_slowdown)
    for arrival in range(8):
        scheduler.add(sequence(arrival, 32))
    run_until(scheduler, machine, lambda: sum(s.num_output_tokens > 4 for s in scheduler.running) == 8)

    def quiet() -> list[float]:
        end = scheduler.running[0].num_tokens + 300
        return run_until(scheduler, machine, lambda: scheduler.running[0].num_tokens >= end)

    def arrive(arrival: int, length: int) -> list[float]:
        arriving = sequence(arrival, length)
        scheduler.add(arriving)
        durations = run_until(scheduler, machine, lambda: arriving.num_output_tokens > 0)
        scheduler.finish(arriving, "abort")
        return durations

    quiet()
    arrive(8, rng.randrange(64, 2000))  # it teaches what a prompt costs, perhaps too little
    before, durations, after = quiet(), arrive(9, 4000), quiet()
    scheduler.check_integrity()
    assert percentile(sorted(durations), 0.99) <= 2 * percentile(sorted(before + after), 0.99)
    assert sum(durations) < 4 * 4000 * (machine.token_ms + 2 * machine.depth_ms), "but it gets on"
    assert max(arrive(10, 1000)[:10]) <= 3 * percentile(sorted(after), 0.99), "what a token costs at the beginning is not forgotten"


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
