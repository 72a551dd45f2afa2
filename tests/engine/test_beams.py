"""Beam search in the engine: what the search over whole arrays finds, in any crowd, under any pressure; nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.decoding import BeamSearchParams, SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.outputs import RequestOutput
from octavo.engine.regrowth import regrowth
from octavo.engine.sequence import RequestStatus, Sequence
from tests.decoding.slow_beam_search import slow_beam_search
from tests.engine.toy import EOS, VOCAB, toy_engine, toy_logits

PREFIX = [(7 * i) % (VOCAB - 1) + 1 for i in range(75)]


@dataclass(frozen=True)
class Job:
    prompt: list[int]
    params: BeamSearchParams | SamplingParams
    at_step: int = 0
    abort_at_step: int | None = None


@st.composite
def beam_params(draw: st.DrawFn) -> BeamSearchParams:
    max_tokens = draw(st.integers(1, 24))
    width = draw(st.integers(1, 8))
    return BeamSearchParams(
        beam_width=width,
        n=draw(st.one_of(st.none(), st.integers(1, width))),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        length_penalty=draw(st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
        early_stopping=draw(st.sampled_from([True, False, "never"])),
        stop_token_ids=draw(st.sampled_from([(), (5,), (5, 9)])),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        detokenize=False,
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    prefix = draw(st.sampled_from([[], PREFIX, PREFIX[:32], PREFIX[:33]]))
    own = draw(st.lists(st.integers(1, VOCAB - 1), min_size=0 if prefix else 1, max_size=20))
    sampled = st.builds(
        SamplingParams, n=st.integers(1, 3), seed=st.integers(0, 3), max_tokens=st.integers(1, 30), detokenize=st.just(False)
    )
    params: Any = draw(st.one_of(beam_params(), beam_params(), sampled))
    return Job(prefix + own, params, draw(st.integers(0, 6)), draw(st.one_of(st.none(), st.none(), st.integers(1, 25))))


def run(engine: LLMEngine, work: list[Job], watch: Callable[[], None] = lambda: None) -> list[RequestOutput]:
    done: dict[int, RequestOutput] = {}
    step = 0
    while engine.has_unfinished_requests or step <= max(job.at_step for job in work):
        for number, job in enumerate(work):
            if job.at_step == step:
                engine.add_request(str(number), {"prompt_token_ids": job.prompt}, job.params)
            if job.abort_at_step == step and (output := engine.abort_request(str(number))) is not None:
                done[number] = output
                engine.check_integrity()
        for output in engine.step():
            if output.finished:
                assert int(output.request_id) not in done, "a request ends twice"
                assert output.error is None
                done[int(output.request_id)] = output
        engine.check_integrity()
        watch()
        step += 1
        assert step < 5000, "no progress"
    assert engine.scheduler.kv.num_used_blocks == 0, "blocks are left behind"
    assert not engine.scheduler.following
    return [done[i] for i in range(len(work))]


def shown(output: RequestOutput) -> list[tuple[Any, ...]]:
    return [(o.index, o.token_ids, o.cumulative_logprob, o.score, o.logprobs, o.finish_reason, o.stop_reason) for o in output.outputs]


def is_whole(job: Job, output: RequestOutput) -> bool:
    """Whether it was neither aborted nor cut off because it outgrew the whole pool."""
    assert job.params.max_tokens is not None
    reasons = {o.finish_reason for o in output.outputs}
    return "abort" not in reasons and all(o.finish_reason == "stop" or len(o.token_ids) == job.params.max_tokens for o in output.outputs)


@settings(max_examples=60)
@given(prompt=st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=40), params=beam_params())
def test_alone_it_finds_what_the_search_over_whole_arrays_finds(prompt: list[int], params: BeamSearchParams) -> None:
    [output] = run(toy_engine(), [Job(prompt, params)])
    ending_ids = frozenset(params.sampling.stop_ids) | (frozenset() if params.ignore_eos else {EOS})
    assert params.max_tokens is not None
    want = slow_beam_search(
        lambda tokens: toy_logits(prompt + tokens), params.beam_width, params.max_tokens, ending_ids=ending_ids,
        min_tokens=params.min_tokens, length_penalty=params.length_penalty, early_stopping=params.early_stopping,
    )[: params.sampling.n]  # fmt: skip
    assert [o.token_ids for o in output.outputs] == [tokens for tokens, _ in want]
    assert [o.score for o in output.outputs] == pytest.approx([score for _, score in want], abs=1e-4)
    for index, o in enumerate(output.outputs):
        assert o.index == index
        assert o.finish_reason == ("stop" if o.token_ids[-1] in ending_ids else "length")
        assert o.stop_reason == (o.token_ids[-1] if o.token_ids[-1] in params.sampling.stop_ids else None)
        assert (o.logprobs is None) == (params.logprobs is None)
        if o.logprobs is not None:
            chosen = [entry[token].logprob for entry, token in zip(o.logprobs, o.token_ids, strict=True)]
            assert o.cumulative_logprob == pytest.approx(sum(chosen))
            assert all(sorted(x.rank for x in e.values())[: params.logprobs] == [1, 2, 3][: params.logprobs] for e in o.logprobs)


@settings(max_examples=40)
@given(
    work=st.lists(jobs(), min_size=1, max_size=6),
    num_blocks=st.integers(16, 50),
    extra_budget=st.sampled_from([0, 1, 16, 17, 64]),
    caching=st.booleans(),
)
def test_the_same_alone_and_in_any_crowd(work: list[Job], num_blocks: int, extra_budget: int, caching: bool) -> None:
    engine = toy_engine(num_blocks, max_num_batched_tokens=8 + extra_budget, enable_prefix_caching=caching)
    for job, output in zip(work, run(engine, work), strict=True):
        if is_whole(job, output):
            assert shown(output) == shown(run(toy_engine(), [Job(job.prompt, job.params)])[0])


def test_preempted_in_the_middle_it_gives_the_same_and_shares_again() -> None:
    """A pool that holds either the search or the newcomer: the search gives way as one, and comes back as one."""
    params = BeamSearchParams(beam_width=4, max_tokens=50, ignore_eos=True, detokenize=False)
    alone = run(toy_engine(), [Job(PREFIX, params)])[0]
    assert alone.metrics.num_preemptions == 0
    for caching in (False, True):
        engine = toy_engine(19, enable_prefix_caching=caching)
        first = Job(PREFIX[::-1] + PREFIX, SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, detokenize=False))
        partial: list[int] = []

        def watch(engine: LLMEngine = engine, partial: list[int] = partial) -> None:
            statuses = [s.status for s in (*engine.scheduler.running, *engine.scheduler.waiting) if s.request.request_id == "1"]
            assert len(set(statuses)) <= 1, "a search is scheduled in part"
            partial += [len(statuses)] * (RequestStatus.PREEMPTED in statuses)

        output = run(engine, [first, Job(PREFIX, params, at_step=3)], watch)[1]
        assert shown(output) == shown(alone)
        assert output.metrics.num_preemptions > 0
        assert max(partial) > 1
        if not caching:
            computed = len(engine.model.executable.computed_tokens)  # type: ignore[attr-defined]
            without_sharing = 4 * (len(PREFIX) + 50) * (output.metrics.num_preemptions + 1)
            assert computed - len(first.prompt) - 150 < without_sharing / 2


def test_beside_requests_whose_rows_are_more_than_one() -> None:
    """Drafts, scored prompts and processed logits put rows between those of the beams."""

    def favour(output: list[int], logits: Any) -> Any:
        logits[7] += 3
        return logits

    sampled = {"seed": 2, "max_tokens": 25, "ignore_eos": True, "detokenize": False}
    beams = BeamSearchParams(beam_width=4, max_tokens=20, ignore_eos=True, detokenize=False)
    work = [
        Job(PREFIX[:20], SamplingParams(n=3, logits_processors=[favour], **sampled)),  # type: ignore[arg-type]
        Job(PREFIX, beams, at_step=2),
        Job(PREFIX[::-1], SamplingParams(prompt_logprobs=2, **sampled), at_step=4),  # type: ignore[arg-type]
        Job([1, 2, 3] * 12, SamplingParams(temperature=0, **sampled), at_step=4),  # type: ignore[arg-type]
        Job(PREFIX[3:40], beams, at_step=5),
    ]
    engine = toy_engine(200, max_num_seqs=16, prompt_lookup_tokens=3)
    for job, output in zip(work, run(engine, work), strict=True):
        assert shown(output) == shown(run(toy_engine(), [Job(job.prompt, job.params)])[0])


def test_a_search_that_outgrows_the_whole_pool_ends_with_what_it_has() -> None:
    engine = toy_engine(8)
    params = BeamSearchParams(beam_width=4, max_tokens=100, ignore_eos=True, detokenize=False)
    [output] = run(engine, [Job(PREFIX[:40], params)])
    assert [o.finish_reason for o in output.outputs] == ["length"] * 4
    lengths = {len(o.token_ids) for o in output.outputs}
    assert len(lengths) == 1
    whole = slow_beam_search(lambda tokens: toy_logits(PREFIX[:40] + tokens), 4, lengths.pop())
    assert [o.token_ids for o in output.outputs] == [tokens for tokens, _ in whole]


def test_aborted_it_gives_what_it_has_and_leaves_nothing() -> None:
    engine = toy_engine()
    params = BeamSearchParams(beam_width=3, max_tokens=100, ignore_eos=True, detokenize=False)
    [output] = run(engine, [Job(PREFIX, params, abort_at_step=12)])
    assert [(o.finish_reason, len(o.token_ids)) for o in output.outputs] == [("abort", 11)] * 3  # the prompt takes two of the steps
    [output] = run(toy_engine(), [Job(PREFIX, params, abort_at_step=0)])
    assert [(o.finish_reason, o.token_ids) for o in output.outputs] == [("abort", [])]


def test_a_faulty_beam_ends_its_search_alone() -> None:
    engine = toy_engine()
    engine.model.executable.nan_token = 63  # type: ignore[attr-defined]
    params = BeamSearchParams(beam_width=4, max_tokens=5, ignore_eos=True, detokenize=False)
    engine.add_request("bad", {"prompt_token_ids": [63]}, params)
    engine.add_request("good", {"prompt_token_ids": [1, 2]}, SamplingParams(temperature=0, max_tokens=1, detokenize=False))
    outputs = {o.request_id: o for _ in range(2) for o in engine.step()}
    engine.check_integrity()
    assert outputs["bad"].outputs[0].finish_reason == "error"
    assert "not numbers" in (outputs["bad"].error or "")
    assert outputs["good"].error is None
    assert engine.scheduler.kv.num_used_blocks == 0


def test_sharing_is_counted() -> None:
    """Beams over a long prompt share it; pruned beams free what was theirs alone."""
    engine = toy_engine()
    used: list[int] = []
    params = BeamSearchParams(beam_width=8, max_tokens=40, ignore_eos=True, detokenize=False)
    [output] = run(engine, [Job(PREFIX, params)], lambda: used.append(engine.scheduler.kv.num_used_blocks))
    assert output.metrics.sharing_saved is not None
    assert 0.5 < output.metrics.sharing_saved < 0.9
    assert max(used) <= -(-len(PREFIX) // 16) + 8 * 4
    value = engine.metrics.registry.get_sample_value
    assert value("octavo_branch_block_steps_total") == output.metrics.branch_block_steps
    assert value("octavo_saved_block_steps_total") == output.metrics.saved_block_steps
    assert value("octavo_kv_blocks_saved") == 0
    [single] = run(engine, [Job(PREFIX, SamplingParams(max_tokens=3, detokenize=False))])
    assert single.metrics.sharing_saved is None


def test_no_wider_than_the_sequences_that_run_at_once() -> None:
    with pytest.raises(ValueError, match=r"beam_width=9 is invalid: at most max_num_seqs \(8\)"):
        toy_engine().add_request("a", {"prompt_token_ids": [1]}, BeamSearchParams(beam_width=9, detokenize=False))


@given(texts=st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=8, unique_by=tuple))
def test_regrowth_computes_no_common_token_twice(texts: list[list[int]]) -> None:
    engine = toy_engine()
    engine.add_request("a", {"prompt_token_ids": [1]}, SamplingParams(detokenize=False))
    root = engine.scheduler.waiting[0]
    members = []
    for text in texts:
        members.append(Sequence(root.request, len(members), b"", 16))
        members[-1].token_ids = text
    origins = regrowth(members)
    assert len(origins) == len(members) - 1
    computed = sum(len(s.token_ids) - (origins[s].num_tokens if s in origins else 0) for s in members)
    assert computed == len({tuple(text[:i]) for text in texts for i in range(1, 7)})
    for member, origin in origins.items():
        assert member.token_ids[: origin.num_tokens] == origin.source.token_ids[: origin.num_tokens]


BEST_OF = SamplingParams(n=2, best_of=6, temperature=1.5, seed=3, max_tokens=9, detokenize=False)


def test_best_of_returns_the_most_probable_of_the_branches() -> None:
    [output] = run(toy_engine(), [Job(PREFIX, BEST_OF)])
    every = SamplingParams(n=6, temperature=1.5, seed=3, max_tokens=9, logprobs=0, detokenize=False)
    branches = run(toy_engine(), [Job(PREFIX, every)])[0].outputs
    ranked = sorted(branches, key=lambda o: -(o.cumulative_logprob or 0))[:2]
    assert [o.token_ids for o in output.outputs] == [o.token_ids for o in ranked]
    assert [o.cumulative_logprob for o in output.outputs] == [o.cumulative_logprob for o in ranked]
    assert [o.index for o in output.outputs] == [0, 1]
    assert all(o.logprobs is None for o in output.outputs)


def test_128_branches_that_do_not_fit_at_once_all_come() -> None:
    params = SamplingParams(n=3, best_of=128, seed=1, max_tokens=20, ignore_eos=True, detokenize=False)
    small = run(toy_engine(135, max_num_seqs=8), [Job(PREFIX[:70], params)])[0]
    large = run(toy_engine(4096, max_num_seqs=60, max_num_batched_tokens=256), [Job(PREFIX[:70], params)])[0]
    assert shown(small) == shown(large)
    assert [len(o.token_ids) for o in small.outputs] == [20] * 3
