"""The offline API on the real model, as its user calls it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.llm_engine import LLMEngine

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("smollm2-135m-instruct", kv_cache_memory_bytes=64 << 20, max_model_len=1024) as llm:
        yield llm


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(llm: LLM) -> Iterator[None]:
    yield
    llm.engine.check_integrity()
    assert not llm.engine.has_unfinished_requests
    assert llm.engine.scheduler.kv.num_used_blocks == 0


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["The capital of France is", "Two and two make", {"prompt_token_ids": [504, 3575, 282, 4649, 314]}]
    outputs = llm.generate(prompts, GREEDY)  # type: ignore[arg-type]
    assert "Paris" in outputs[0].outputs[0].text
    assert outputs[2].outputs[0].token_ids == outputs[0].outputs[0].token_ids
    assert [output.prompt for output in outputs] == [*prompts[:2], None]
    assert all(output.finished and len(output.outputs[0].token_ids) <= 12 for output in outputs)
    assert llm.generate(prompts[0], GREEDY)[0].outputs[0].text == outputs[0].outputs[0].text  # type: ignore[arg-type]


def test_one_set_of_parameters_for_each_prompt(llm: LLM) -> None:
    first, second = llm.generate(["Hello", "Hello"], [GREEDY, SamplingParams(temperature=0, max_tokens=3)])
    assert len(second.outputs[0].token_ids) == 3
    assert second.outputs[0].token_ids == first.outputs[0].token_ids[:3]
    with pytest.raises(ValueError, match="2 entries for 1 prompt"):
        llm.generate("Hello", [GREEDY, GREEDY])


def test_logprobs_add_up(llm: LLM) -> None:
    branch = llm.generate("The sun is", SamplingParams(temperature=0, max_tokens=5, logprobs=3))[0].outputs[0]
    assert branch.logprobs is not None
    chosen = [entry[token] for entry, token in zip(branch.logprobs, branch.token_ids, strict=True)]
    assert branch.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in chosen))
    assert all(entry.rank == 1 for entry in chosen)
    assert "".join(entry.decoded_token for entry in chosen) == branch.text
    assert all(len(entry) == 3 for entry in branch.logprobs)


def test_branches_share_a_prompt_and_differ(llm: LLM) -> None:
    branches = llm.generate("Once upon a time", SamplingParams(n=4, seed=5, max_tokens=16))[0].outputs
    assert [branch.index for branch in branches] == [0, 1, 2, 3]
    assert len({branch.text for branch in branches}) == 4
    again = llm.generate(["Something else", "Once upon a time"], SamplingParams(n=4, seed=5, max_tokens=16))[1].outputs
    assert [branch.text for branch in again] == [branch.text for branch in branches]


def test_a_prefix_that_was_computed_is_found_again(llm: LLM) -> None:
    prompt = "All happy families are alike; every unhappy family is unhappy in its own way. " * 4
    cold = llm.generate(prompt + "So", GREEDY)[0]
    warm = llm.generate(prompt + "So", GREEDY)[0]
    assert warm.num_cached_tokens >= 32
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids


def test_stop_strings_ids_and_min_tokens(llm: LLM) -> None:
    text = llm.generate("The capital of France is", GREEDY)[0].outputs[0].text
    stopped = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=12, stop=text[3:7]))[0].outputs[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == (text[:3], "stop", text[3:7])
    by_id = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[7042]))[0].outputs[0]
    assert (by_id.text, by_id.finish_reason, by_id.stop_reason) == ("", "stop", 7042)
    kept = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=12, min_tokens=4, stop_token_ids=[7042]))
    assert 7042 not in kept[0].outputs[0].token_ids[:4]


def test_chat_uses_the_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Name the capital of France."}]
    outputs = llm.chat([conversation, conversation], SamplingParams(temperature=0, max_tokens=24))
    assert "Paris" in outputs[0].outputs[0].text
    assert outputs[0].outputs[0].finish_reason == "stop"
    assert outputs[1].outputs[0].text == outputs[0].outputs[0].text


def test_a_stream_tells_what_generate_tells_and_may_be_left(llm: LLM) -> None:
    whole = llm.generate("The sun is", GREEDY)[0].outputs[0].text
    assert "".join(output.outputs[0].text for output in llm.stream("The sun is", GREEDY)) == whole
    stream = llm.stream("The sun is", GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def test_streams_and_calls_may_be_interleaved(llm: LLM) -> None:
    whole = llm.generate("The sun is", GREEDY)[0].outputs[0].text
    first, second = llm.stream("The sun is", GREEDY), llm.stream("The sun is", GREEDY)
    texts = [next(first).outputs[0].text, next(second).outputs[0].text]
    assert llm.generate("The sun is", GREEDY)[0].outputs[0].text == whole
    for i, stream in enumerate((first, second)):
        texts[i] += "".join(output.outputs[0].text for output in stream)
    assert texts == [whole, whole]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "empty"), ({"prompt_token_ids": [49152]}, "49152"), ({"prompt_token_ids": [1] * 1024}, "1024"), (7, "prompt=7"), ({}, "prompt")],
)
def test_bad_prompts_are_refused_before_anything_runs(llm: LLM, prompt: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(["fine", prompt], GREEDY)  # type: ignore[list-item]


def test_an_interrupt_frees_everything(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(3))
    step = LLMEngine.step

    def interrupted(self: LLMEngine) -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(LLMEngine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two"], SamplingParams(max_tokens=100))


def test_a_cache_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_cache_memory_bytes=1000 is too small"):
        LLM("smollm2-135m-instruct", kv_cache_memory_bytes=1000)
