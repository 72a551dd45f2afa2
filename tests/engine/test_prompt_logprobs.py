"""Log-probabilities of prompts: what the model says, bit by bit, whatever is cached, preempted, chunked and run beside it; no more
rows of logits in a step than there is room for; and what is not wanted is not computed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backends.base import StepInput
from octavo.backends.reference.choice import log_softmax
from octavo.decoding import RequestOutputKind, SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.outputs import Logprob, RequestOutput
from tests.engine.toy import BLOCK, VOCAB, ToyExecutable, toy_engine

PREFIX = tuple((7 * i + 1) % (VOCAB - 1) + 1 for i in range(75))
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    params: SamplingParams
    at_step: int


def said_by_the_model(prompt: tuple[int, ...], k: int, start: int) -> PromptLogprobs:
    """From one row of logits per position, by the definition."""
    executable = ToyExecutable()
    blocks = -(-len(prompt) // BLOCK)
    executable.allocate_kv(blocks)
    count = len(prompt)
    every = np.arange(count, dtype=np.int32)
    table = np.arange(blocks, dtype=np.int32)[None]
    logits = executable.run(
        StepInput(
            np.array(prompt, np.int32),
            every,
            np.array([0, count], np.int32),
            np.array([count], np.int32),
            table,
            every.astype(np.int64),
            every,
        )
    )
    expected: PromptLogprobs = [None] * count
    for position in range(max(1, start), count):
        row = logits[position - 1]
        logprobs = log_softmax(row).astype(np.float32)
        order = sorted(range(VOCAB), key=lambda i: (-row[i], i))
        token = prompt[position]
        expected[position] = {i: Logprob(float(logprobs[i]), order.index(i) + 1, f"{i} ") for i in dict.fromkeys((token, *order[:k]))}
    return expected


def run(engine: LLMEngine, jobs: list[Job]) -> list[RequestOutput]:
    """The last output of each job, with the prompt's log-probabilities of whichever brought them."""
    last: dict[int, RequestOutput] = {}
    found: dict[int, PromptLogprobs] = {}
    step = 0
    while engine.has_unfinished_requests or step <= max(job.at_step for job in jobs):
        for number, job in enumerate(jobs):
            if job.at_step == step:
                engine.add_request(str(number), {"prompt_token_ids": list(job.prompt)}, job.params)
        for output in engine.step():
            number = int(output.request_id)
            last[number] = output
            if output.prompt_logprobs is not None:
                delta = jobs[number].params.output_kind is RequestOutputKind.DELTA
                assert number not in found or not delta, "given twice"
                found[number] = output.prompt_logprobs
        engine.check_integrity()
        step += 1
        assert step < 5000, "no progress"
    assert engine.scheduler.kv.num_used_blocks == 0
    return [replace(last[number], prompt_logprobs=found.get(number)) for number in range(len(jobs))]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    prefix = PREFIX[: draw(st.sampled_from([0, 16, 33, 75]))]
    own = tuple(draw(st.lists(st.integers(1, VOCAB - 1), min_size=0 if prefix else 1, max_size=20)))
    wants = draw(st.sampled_from([None, 0, 1, 3]))
    params = SamplingParams(
        n=draw(st.sampled_from([1, 1, 2])),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=1,
        max_tokens=draw(st.integers(0, 20)),
        logprobs=draw(st.sampled_from([None, 2])),
        prompt_logprobs=wants,
        prompt_logprobs_start=draw(st.sampled_from([0, 1, 2, 16, 17, 40, 200])),
        ignore_eos=True,
        detokenize=False,
        output_kind=draw(st.sampled_from(list(RequestOutputKind))),
    )
    return Job(prefix + own, params, draw(st.integers(0, 6)))


@settings(max_examples=120, deadline=None)
@given(
    work=st.lists(jobs(), min_size=1, max_size=6),
    num_blocks=st.integers(20, 60),
    max_num_seqs=st.integers(1, 8),
    extra_budget=st.sampled_from([0, 1, 16, 17, 200]),
    max_score_rows=st.sampled_from([1, 2, 15, 16, 56]),
    caching=st.booleans(),
)
def test_they_are_what_the_model_says_in_any_crowd(
    work: list[Job], num_blocks: int, max_num_seqs: int, extra_budget: int, max_score_rows: int, caching: bool
) -> None:
    engine = toy_engine(
        num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_seqs + extra_budget, enable_prefix_caching=caching
    )
    engine.scheduler.max_score_rows = max_score_rows
    executable = cast(ToyExecutable, engine.model.executable)
    compute, most = executable.run, 0

    def counted(step: StepInput) -> Any:
        nonlocal most
        most = max(most, len(step.logits_rows))
        return compute(step)

    executable.run = counted  # type: ignore[method-assign]
    for job, output in zip(work, run(engine, work), strict=True):
        assert output.error is None
        if job.params.prompt_logprobs is None:
            assert output.prompt_logprobs is None
        else:
            assert output.prompt_logprobs == said_by_the_model(job.prompt, job.params.prompt_logprobs, job.params.prompt_logprobs_start)
        if job.params.max_tokens == 0:
            assert [(branch.token_ids, branch.finish_reason) for branch in output.outputs] == [([], "length")] * job.params.n
    assert most <= max_score_rows + max_num_seqs


SCORE = SamplingParams(max_tokens=0, prompt_logprobs=0, detokenize=False)


def test_only_what_is_wanted_is_computed_again() -> None:
    """The cached prefix serves up to the first row whose logits are wanted; blocks that come out the same are shared again."""
    engine = toy_engine()
    executable = cast(ToyExecutable, engine.model.executable)
    prompt = PREFIX + tuple(range(1, 22))  # 6 blocks
    run(engine, [Job(prompt, SCORE, 0)])
    cached = engine.scheduler.kv.pool.num_cached
    assert cached == 6
    for start, computed in ((0, 96), (1, 96), (17, 80), (18, 80), (80, 32), (81, 16), (96, 16), (500, 16)):
        executable.computed_tokens.clear()
        (output,) = run(engine, [Job(prompt, replace(SCORE, prompt_logprobs_start=start), 0)])
        assert len(executable.computed_tokens) == computed, start
        assert output.num_cached_tokens == 96 - computed
        assert output.prompt_logprobs == said_by_the_model(prompt, 0, start)
        assert engine.scheduler.kv.pool.num_cached == cached


def test_a_prompt_may_fill_the_context() -> None:
    """Where nothing is to be generated."""
    engine = toy_engine()
    full = tuple(1 + i % 60 for i in range(engine.max_model_len))
    (output,) = run(engine, [Job(full, SCORE, 0)])
    assert output.prompt_logprobs == said_by_the_model(full, 0, 0)
    for tokens, params in ((full, replace(SCORE, max_tokens=1)), ((*full, 1), SCORE)):
        with pytest.raises(ValueError, match="context length"):
            engine.add_request("x", {"prompt_token_ids": list(tokens)}, params)


def test_logits_that_are_no_numbers_end_their_request_alone() -> None:
    engine = toy_engine()
    cast(ToyExecutable, engine.model.executable).nan_token = 63
    good, bad = Job((1, 2, 3, 4), SCORE, 0), Job((1, 2, 63, 4), SCORE, 0)
    outputs = run(engine, [good, bad, good])
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert "not numbers" in (outputs[1].error or "")
    assert outputs[0].prompt_logprobs == outputs[2].prompt_logprobs == said_by_the_model(good.prompt, 0, 0)
