"""Prompt lookup in the engine: the tokens are those that come without it, in fewer steps, and it takes nothing from anybody."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.decoding import SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.outputs import RequestOutput
from tests.engine.toy import BLOCK, ToyExecutable, toy_engine

TWO_TOKENS = SamplingParams(temperature=1.0, seed=5, max_tokens=90, allowed_token_ids=[1, 2], logprobs=1, detokenize=False)
"""What is drawn of two tokens repeats itself, so that drafts are right half of the time."""


def run(engine: LLMEngine, prompt: list[int], params: SamplingParams) -> tuple[RequestOutput, int]:
    """The request's output, and the steps that it took."""
    engine.add_request("0", {"prompt_token_ids": prompt}, params)
    steps = 0
    while True:
        outputs = engine.step()
        engine.check_integrity()
        steps += 1
        if outputs and outputs[0].finished:
            return outputs[0], steps


def told(output: RequestOutput) -> list[tuple[Any, ...]]:
    return [(b.token_ids, b.logprobs, b.finish_reason, b.stop_reason) for b in output.outputs]


def accepted(engine: LLMEngine) -> tuple[int, int]:
    def value(name: str) -> int:
        return int(engine.metrics.registry.get_sample_value(f"octavo_{name}_total") or 0)

    return value("draft_tokens"), value("accepted_draft_tokens")


@pytest.mark.parametrize("n", [1, 3])
def test_the_same_tokens_in_fewer_steps(n: int) -> None:
    params = SamplingParams(
        **{**{f: getattr(TWO_TOKENS, f) for f in ("temperature", "seed", "max_tokens", "allowed_token_ids", "logprobs")}, "n": n}
    )
    plain, plain_steps = run(toy_engine(), [1, 2, 3], params)
    engine = toy_engine(prompt_lookup_tokens=6)
    drafted, steps = run(engine, [1, 2, 3], params)
    assert told(drafted) == told(plain)
    num_drafted, num_accepted = accepted(engine)
    assert plain_steps == 90
    assert steps < 70
    assert plain_steps - steps <= num_accepted < num_drafted
    assert all(len(branch.token_ids) == 90 for branch in drafted.outputs), "a draft must not go beyond max_tokens"


def test_a_stop_within_a_draft_ends_there() -> None:
    params = SamplingParams(temperature=0, max_tokens=60, allowed_token_ids=[1, 2], detokenize=False)
    whole, _ = run(toy_engine(), [1], params)
    tokens = whole.outputs[0].token_ids
    at = next(i for i in range(20, 60) if tokens[i] != tokens[i - 1])
    stopping = SamplingParams(
        temperature=0, max_tokens=60, min_tokens=at, allowed_token_ids=[1, 2], stop_token_ids=[tokens[at]], detokenize=False
    )
    plain, _ = run(toy_engine(), [1], stopping)
    drafted, _ = run(toy_engine(prompt_lookup_tokens=8), [1], stopping)
    assert told(drafted) == told(plain)
    assert drafted.outputs[0].finish_reason == "stop"


def test_a_fault_is_told_where_it_would_be_without() -> None:
    """A NaN behind a drafted token counts only if that token comes true."""
    for token in (1, 2):
        outputs = []
        for drafts in (0, 8):
            engine = toy_engine(prompt_lookup_tokens=drafts)
            assert isinstance(engine.model.executable, ToyExecutable)
            engine.model.executable.nan_token = token
            outputs.append(run(engine, [9, 8, token + 10], TWO_TOKENS)[0])
        assert outputs[0].error == outputs[1].error
        assert told(outputs[0]) == told(outputs[1])


def test_penalties_and_processors_need_no_drafts_to_be_right() -> None:
    for more in ({"repetition_penalty": 1.3}, {"logits_processors": [lambda ids, logits: logits]}):
        params = SamplingParams(temperature=1.0, seed=5, max_tokens=40, allowed_token_ids=[1, 2], detokenize=False, **more)
        engine = toy_engine(prompt_lookup_tokens=6)
        drafted, _ = run(engine, [1, 2, 3], params)
        assert told(drafted) == told(run(toy_engine(), [1, 2, 3], params)[0])
        assert accepted(engine) == (0, 0)


def test_drafts_take_no_block_that_others_may_need() -> None:
    """In a pool that just suffices, no draft causes a preemption."""
    engine = toy_engine(num_blocks=2 * -(-93 // BLOCK), prompt_lookup_tokens=8, enable_prefix_caching=False)
    for name in "ab":
        engine.add_request(name, {"prompt_token_ids": [1, 2, 3]}, TWO_TOKENS)
    while engine.has_unfinished_requests:
        engine.step()
        engine.check_integrity()
    assert engine.scheduler.num_preemptions == 0
    assert accepted(engine)[1] > 0


def test_refusals() -> None:
    for value in (-1, 33, 1.5, True):
        with pytest.raises(ValueError, match=f"prompt_lookup_tokens={value}"):
            toy_engine(prompt_lookup_tokens=value)


def test_branches_part_at_the_end_of_a_prompt_whose_last_token_is_computed_alone() -> None:
    """Nothing is drafted there: every branch is to choose its own first token."""
    engine = toy_engine(max_num_seqs=2, max_num_batched_tokens=2, prompt_lookup_tokens=6)
    prompt = [2, 9, 16, 23, 30] * 15
    engine.add_request(
        "a", {"prompt_token_ids": prompt}, SamplingParams(n=3, temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    )
    outputs = []
    for _ in range(200):
        outputs += engine.step()
    assert outputs[-1].finished
    assert [len(branch.token_ids) for branch in outputs[-1].outputs] == [8, 8, 8]
