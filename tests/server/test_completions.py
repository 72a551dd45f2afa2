"""``/v1/completions`` as the official client sees it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from octavo.text import load_tokenizer
from octavo.weights import Checkpoint

from .process import MAX_MODEL_LEN, MODEL

PROMPT = "The three primary colours are"


def greedy(client: openai.OpenAI, prompt: Any = PROMPT, **kwargs: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0, **kwargs})


def test_shape(client: openai.OpenAI) -> None:
    answer = greedy(client)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.text
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_default_is_sixteen_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_the_four_kinds_of_prompt_agree(client: openai.OpenAI) -> None:
    """Text and its token ids, alone or in a list, answer the same."""
    text = greedy(client, extra_body={"return_token_ids": True})
    ids: list[int] = text.choices[0].prompt_token_ids
    assert text.usage is not None
    assert len(ids) == text.usage.prompt_tokens
    other = "Once upon a time"
    expected = [text.choices[0].text, greedy(client, other).choices[0].text]
    other_ids: list[int] = greedy(client, other, extra_body={"return_token_ids": True}).choices[0].prompt_token_ids

    assert greedy(client, ids).choices[0].text == expected[0]
    for prompts in ([PROMPT, other], [ids, other_ids]):
        answer = greedy(client, prompts)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(ids) + len(other_ids)


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT, "Water is"]])
def test_n_numbers_choices_by_prompt(client: openai.OpenAI, prompt: str | list[str]) -> None:
    answer = greedy(client, prompt, n=3, temperature=1.0, seed=5, max_tokens=8)
    count = 3 * (1 if isinstance(prompt, str) else len(prompt))
    assert [choice.index for choice in answer.choices] == list(range(count))
    assert len({choice.text for choice in answer.choices}) > 1, "samples of one prompt differ"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8 * count


def test_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    plain = greedy(client).choices[0].text
    assert greedy(client, echo=True).choices[0].text == PROMPT + plain
    streamed = "".join(chunk.choices[0].text for chunk in greedy(client, echo=True, stream=True))
    assert streamed == PROMPT + plain


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_stop_strings_cut_the_text(client: openai.OpenAI, as_list: bool, keep: bool) -> None:
    free = greedy(client, max_tokens=48).choices[0].text
    stop = free[10:14]
    end = free.index(stop) + (len(stop) if keep else 0)
    options: dict[str, Any] = {
        "max_tokens": 48,
        "stop": ["\0never", stop] if as_list else stop,
        "extra_body": {"include_stop_str_in_output": keep},
    }
    (choice,) = greedy(client, **options).choices
    assert choice.text == free[:end]
    assert choice.finish_reason == "stop"
    assert choice.stop_reason == stop
    chunks = list(greedy(client, stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == free[:end]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_token_ids(client: openai.OpenAI) -> None:
    ids: list[int] = greedy(client, extra_body={"return_token_ids": True}).choices[0].token_ids
    stop = ids[5]
    answer = greedy(client, extra_body={"stop_token_ids": [stop], "return_token_ids": True})
    assert answer.choices[0].token_ids == ids[: ids.index(stop) + 1]
    assert answer.choices[0].finish_reason == "stop"
    longer = greedy(client, extra_body={"stop_token_ids": [stop], "min_tokens": 10})
    assert longer.usage is not None
    assert longer.usage.completion_tokens >= 10


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    """The lists are parallel; greedy choices are the most probable; the tokens spell the text at the offsets that are given."""
    answer = greedy(client, logprobs=3, stream=stream, extra_body={"ignore_eos": False})
    chunks = list(answer) if stream else [answer]
    text = ""
    tokens: list[str] = []
    chosen: list[float] = []
    top: list[dict[str, float]] = []
    offsets: list[int] = []
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.text
        if choice.logprobs is not None:
            tokens += choice.logprobs.tokens
            chosen += choice.logprobs.token_logprobs
            top += choice.logprobs.top_logprobs
            offsets += choice.logprobs.text_offset
    assert len(tokens) == len(chosen) == len(top) == len(offsets) > 0
    assert "".join(tokens).startswith(text)
    for token, logprob, alternatives, offset in zip(tokens, chosen, top, offsets, strict=True):
        assert logprob <= 0
        assert len(alternatives) == 3
        assert alternatives[token] == logprob == max(alternatives.values())
        if "\ufffd" not in token and offset < len(text):
            assert text[offset:].startswith(token)


@pytest.mark.parametrize("stream", [False, True])
def test_text_offsets_count_whole_characters(client: openai.OpenAI, smollm2: Checkpoint, stream: bool) -> None:
    """In front of a token stand the characters that the tokens before it complete, whatever they are split into."""
    tokenizer = load_tokenizer(smollm2)
    prompt = "🦜🦜🦜🦜🦜🦜🦜🦜🦜🦜🦜🦜"
    answer = greedy(client, prompt, logprobs=0, stream=stream, extra_body={"return_token_ids": True})
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    ids = [token_id for choice in choices for token_id in choice.token_ids]
    offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
    data = [tokenizer.token_bytes(token_id) for token_id in ids]
    assert any(len(piece) < 4 for piece in data), "the prompt should make the model split characters"
    assert offsets == [whole_characters(b"".join(data[:i])) for i in range(len(data))]


def whole_characters(data: bytes) -> int:
    """Characters that no further byte can change: all, but for a tail that a continuation byte would join."""
    count = len(data.decode(errors="replace"))
    joins = any(len((data + bytes([more])).decode(errors="replace")) == count for more in (0x80, 0x90, 0xA0, 0xBF))
    return count - 1 if joins else count


@pytest.mark.parametrize("narrow", [{"top_p": 5e-324}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 5e-324}], ids=str)
def test_the_narrowest_choice_is_greedy(client: openai.OpenAI, narrow: dict[str, Any]) -> None:
    """Also where a double is too small for the kernels' single precision."""
    expected = greedy(client).choices[0].text
    assert greedy(client, temperature=1.0, extra_body={"seed": 3, **narrow}).choices[0].text == expected


def test_logprobs_zero_gives_the_chosen_token_only(client: openai.OpenAI) -> None:
    logprobs = greedy(client, logprobs=0).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs
    assert all(not alternatives for alternatives in logprobs.top_logprobs or [])


def test_usage_counts_cached_tokens(client: openai.OpenAI) -> None:
    """The second time, all full blocks of a long prompt come from the cache; one token is always computed."""
    prompt = "A list of things that are never the same twice: " + ", ".join(f"river {i}" for i in range(60))
    first, second = greedy(client, prompt, max_tokens=2).usage, greedy(client, prompt, max_tokens=2).usage
    assert first is not None
    assert second is not None
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == (second.prompt_tokens - 1) // 16 * 16
    assert second.prompt_tokens == first.prompt_tokens


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.0, "seed": 7}, {"temperature": 0.8, "top_p": 0.9, "seed": -3, "n": 3}]
)
def test_a_stream_says_the_same(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = greedy(client, **options, extra_body={"return_token_ids": True})
    texts: dict[int, str] = {}
    ids: dict[int, list[int]] = {}
    reasons: dict[int, str] = {}
    for chunk in greedy(client, stream=True, **options, extra_body={"return_token_ids": True}):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            ids.setdefault(choice.index, []).extend(choice.token_ids)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert ids == {choice.index: choice.token_ids for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_stream_of_many_prompts(client: openai.OpenAI) -> None:
    prompts = [f"{n} plus one is" for n in ("one", "two", "three", "four")]
    whole = greedy(client, prompts, n=1, max_tokens=8)
    texts = [""] * len(prompts)
    for chunk in greedy(client, prompts, max_tokens=8, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_stream_usage(client: openai.OpenAI) -> None:
    whole = greedy(client).usage
    assert whole is not None
    chunks = list(greedy(client, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    last = chunks[-1]
    assert last.choices == []
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == whole.completion_tokens
    assert last.usage.prompt_tokens == whole.prompt_tokens

    plain = list(greedy(client, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage for chunk in plain[:-1]] == [None] * (len(plain) - 1)
    assert plain[-1].usage.completion_tokens == whole.completion_tokens
    assert all(chunk.usage is None for chunk in greedy(client, stream=True))


def test_text_is_whole_characters(client: openai.OpenAI) -> None:
    """Tokens that split characters never reach the client as halves, and a stream of them adds up to the whole."""
    prompt = "Emoji story: 🦜🦜🦜🦜🦜🦜🦜🦜 日本語日本語日本語"
    options: dict[str, Any] = {"temperature": 1.5, "seed": 11, "max_tokens": 48, "extra_body": {"ignore_eos": True}}
    whole = greedy(client, prompt, **options).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in greedy(client, prompt, stream=True, **options)) == whole


def test_context_is_filled_to_its_last_token(client: openai.OpenAI) -> None:
    limit = MAX_MODEL_LEN
    answer = client.completions.create(model=MODEL, prompt=[100] * (limit - 1), temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.total_tokens == limit
    assert answer.choices[0].finish_reason == "length"
    for prompt, max_tokens in (([100] * limit, 1), ([100] * (limit - 4), 5), ("word " * 2 * limit, 1)):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "prompt"
