"""Sampling parameters through the whole engine: every token is the one that the formulas, stated here anew, give for its history.

Requests run in a crowd, in pools so small that they preempt each other, and with several branches, whose counts part at the fork.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo import RequestOutput, SamplingParams
from octavo.decoding import LogitsProcessor
from octavo.engine.llm_engine import LLMEngine

from ..conformance.choices import slow_choice
from .toy import EOS, VOCAB, toy_engine, toy_logits

FloatArray = npt.NDArray[np.float64]


def run(engine: LLMEngine, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, RequestOutput]:
    for request_id, (prompt, params) in requests.items():
        engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
    done = {}
    while engine.has_unfinished_requests:
        for output in engine.step():
            done[output.request_id] = output
        engine.check_integrity()
    return done


def random_request(rng: np.random.Generator) -> tuple[list[int], SamplingParams]:
    def maybe(value: Any, otherwise: Any) -> Any:
        return value if rng.random() < 0.5 else otherwise

    params = SamplingParams(
        n=int(maybe(rng.integers(2, 5), 1)),
        temperature=maybe(0.0, 1.5),
        seed=int(rng.integers(0, 2**63)),
        max_tokens=int(rng.integers(5, 40)),
        detokenize=False,
        min_tokens=int(maybe(4, 0)),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0),
        repetition_penalty=maybe(float(rng.uniform(0.6, 2)), 1.0),
        logit_bias=maybe({int(t): float(rng.uniform(-4, 4)) for t in rng.integers(0, VOCAB, 5)}, None),
        allowed_token_ids=maybe(sorted({int(t) for t in rng.integers(0, VOCAB, 30)} | {40}), None),
        bad_words=maybe(["##", "9:", "7", "456"], None),
        stop_token_ids=maybe([11], None),
    )
    return rng.integers(1, VOCAB, rng.integers(1, 60)).tolist(), params


def expected_logits(tokens: list[int], num_prompt: int, params: SamplingParams) -> FloatArray:
    """(V,) of the next token, by the documented formulas, in fp32 where the engine is."""
    x = toy_logits(tokens).astype(np.float32)
    output = tokens[num_prompt:]
    if params.allowed_token_ids is not None:
        x[np.setdiff1d(np.arange(VOCAB), np.array(params.allowed_token_ids))] = -np.inf
    for word in params.bad_words or ():
        for spelling in (word, " " + word):
            *start, last = spelling.encode()
            if output[len(output) - len(start) :] == start and len(output) >= len(start):
                x[last] = -np.inf
    for token, value in (params.logit_bias or {}).items():
        x[token] += np.float32(value)
    if len(output) < params.min_tokens:
        x[[EOS, *params.stop_ids]] = -np.inf
    if params.repetition_penalty != 1.0:
        seen = np.unique(tokens)
        penalty = np.float32(params.repetition_penalty)
        x[seen] = np.where(x[seen] > 0, x[seen] / penalty, x[seen] * penalty)
    for token, count in Counter(output).items():
        x[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        x[token] -= np.float32(params.presence_penalty)
    return x.astype(np.float64)


def check(prompt: list[int], params: SamplingParams, output: RequestOutput) -> int:
    """Every token of every branch. Returns how many there were."""
    assert output.error is None
    assert params.seed is not None
    for branch in output.outputs:
        tokens = list(prompt)
        for token in branch.token_ids:
            x = expected_logits(tokens, len(prompt), params)
            want = slow_choice(x.tolist(), params.temperature, params.seed, branch.index, len(tokens))
            assert token == want, f"token {len(tokens) - len(prompt)} of branch {branch.index}"
            tokens.append(token)
    return sum(len(branch.token_ids) for branch in output.outputs)


@pytest.mark.parametrize("num_blocks", [4096, 14])
def test_every_token_follows_the_formulas(num_blocks: int) -> None:
    rng = np.random.default_rng(17)
    requests = {str(i): random_request(rng) for i in range(40)}
    engine = toy_engine(num_blocks)
    outputs = run(engine, requests)
    num_tokens = sum(check(prompt, params, outputs[name]) for name, (prompt, params) in requests.items())
    assert num_tokens > 800
    assert (engine.scheduler.num_preemptions > 20) == (num_blocks == 14)


def generate(engine: LLMEngine, prompt: list[int], **params: Any) -> RequestOutput:
    return run(
        engine, {"it": (prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "detokenize": False, **params}))}
    )["it"]


def test_penalties_do_not_reach_back() -> None:
    """Presence and frequency concern the output, repetition the prompt too."""
    favourite = int(toy_logits([5, 6]).argmax())
    prompt = [5, 6]
    again = [favourite, 6]
    assert generate(toy_engine(), prompt, max_tokens=1, frequency_penalty=2.0, presence_penalty=2.0).outputs[0].token_ids == [favourite]
    first = int(toy_logits(again).argmax())
    in_prompt = [first, *again]
    assert generate(toy_engine(), in_prompt, max_tokens=1, presence_penalty=2.0).outputs[0].token_ids == [
        int(toy_logits(in_prompt).argmax())
    ]


def test_a_repeated_token_is_driven_out() -> None:
    """A bias makes one token the favourite for ever; the frequency penalty ends that."""
    always = generate(toy_engine(), [1, 2], max_tokens=30, logit_bias={9: 20.0}).outputs[0].token_ids
    assert always == [9] * 30
    penalized = generate(toy_engine(), [1, 2], max_tokens=30, logit_bias={9: 20.0}, frequency_penalty=2.0).outputs[0].token_ids
    assert 5 <= penalized.count(9) <= 15
    assert penalized[:5] == [9] * 5


def test_a_prompt_is_cut_to_its_last_tokens() -> None:
    prompt = list(range(1, 50))
    assert (
        generate(toy_engine(), prompt, truncate_prompt_tokens=7).outputs[0].token_ids
        == generate(toy_engine(), prompt[-7:]).outputs[0].token_ids
    )
    long = [3] * 5000
    engine = toy_engine()
    output = generate(engine, long, truncate_prompt_tokens=-1, max_tokens=6)
    assert len(output.prompt_token_ids) == engine.max_model_len - 6
    assert len(output.outputs[0].token_ids) == 6


# -- functions of the caller's ------------------------------------------------------------------------------


def only(token: int) -> LogitsProcessor:
    def process(output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        mask = np.full_like(logits, -np.inf)
        mask[token] = 0.0
        return mask

    return process


def test_processors_see_history_and_logits() -> None:
    seen: list[tuple[list[int], npt.NDArray[np.float32]]] = []
    prompts: list[list[int]] = []

    def remember(output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen.append((output, logits.copy()))
        return logits

    def with_prompt(prompt: list[int], output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        prompts.append(prompt)
        logits[:] = -logits  # in place
        return logits

    prompt = [4, 5, 6]
    output = generate(toy_engine(), prompt, logits_processors=[remember, with_prompt], logprobs=2, max_tokens=5).outputs[0]
    assert prompts == [prompt] * 5
    assert output.logprobs is not None
    for i, token in enumerate(output.token_ids):
        history, logits = seen[i]
        model = toy_logits(prompt + output.token_ids[:i])
        assert history == output.token_ids[:i]
        assert logits.dtype == np.float32
        assert np.array_equal(logits, model)
        assert token == int(np.argmax(-model)), "the last processor's logits decide"
        logprob = float(model[token]) - math.log(np.exp(model.astype(np.float64)).sum())
        assert abs(output.logprobs[i][token].logprob - logprob) < 1e-5, "log-probabilities are the model's"
        assert output.logprobs[i][token].rank == VOCAB


def test_rules_and_penalties_come_after_processors() -> None:
    output = generate(toy_engine(), [4, 5], logits_processors=[only(9)], allowed_token_ids=[9, 10], max_tokens=4)
    assert output.outputs[0].token_ids == [9] * 4
    failed = generate(toy_engine(), [4, 5], logits_processors=[only(9)], allowed_token_ids=[10], max_tokens=4)
    assert failed.error is not None
    assert "no token was left" in failed.error


def raises(_: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    raise LookupError("no such thing")


def gives_nan(_: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    logits[3] = np.nan
    return logits


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (raises, r"logits_processors\[1\] failed with LookupError: no such thing"),
        (gives_nan, r"logits_processors\[1\] returned logits that are not numbers"),
        (lambda _, logits: logits[:5], r"logits_processors\[1\] returned an array of shape \(5,\)"),
        (lambda _, logits: None, r"logits_processors\[1\]"),
        (lambda _, logits: ["x"] * VOCAB, r"logits_processors\[1\] failed with ValueError"),
        (lambda logits: logits, r"logits_processors\[1\] failed with TypeError"),
    ],
)
def test_a_faulty_processor_ends_its_request_alone(processor: LogitsProcessor, message: str) -> None:
    def after_three(output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return processor(output, logits) if len(output) >= 3 else logits  # type: ignore[no-any-return]

    params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, "detokenize": False}
    faulty = after_three if "TypeError" not in message else processor
    engine = toy_engine()
    outputs = run(engine, {
        "good": ([1, 2], SamplingParams(**params, logits_processors=[only(5)])),
        "bad": ([1, 2], SamplingParams(**params, n=2, logits_processors=[only(7), faulty])),
        "plain": ([1, 2], SamplingParams(**params)),
    })  # fmt: skip
    assert outputs["good"].outputs[0].token_ids == [5] * 8
    assert outputs["plain"].outputs[0].token_ids == generate(toy_engine(), [1, 2]).outputs[0].token_ids
    assert outputs["bad"].error is not None
    assert re.search(message, outputs["bad"].error)
    assert {branch.finish_reason for branch in outputs["bad"].outputs} == {"error"}
    assert engine.scheduler.kv.num_used_blocks == 0
