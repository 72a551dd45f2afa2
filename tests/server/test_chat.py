"""``/v1/chat/completions`` as the official client sees it."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from .process import MODEL

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
QUESTION = {"role": "user", "content": "What is the capital of France?"}


def ask(client: openai.OpenAI, *messages: dict[str, Any], **kwargs: Any) -> Any:
    options = {"model": MODEL, "messages": list(messages) or [SYSTEM, QUESTION], "temperature": 0, "max_tokens": 24, **kwargs}
    return client.chat.completions.create(**options)


def joined(stream: Any, index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices if choice.index == index)


def test_it_knows_paris(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.service_tier is None
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    """An answer can be handed back as the client's object, with all of its empty fields."""
    first = ask(client).choices[0].message
    second = ask(client, SYSTEM, QUESTION, first, {"role": "user", "content": "And of Italy?"})
    assert second.choices[0].message.content
    dumped = ask(client, SYSTEM, QUESTION, first.model_dump(), {"role": "user", "content": "And of Italy?"})
    assert dumped.choices[0].message.content == second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0, "the conversation so far is cached"


def test_roles_and_parts(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "You answer in one word."}
    plain = ask(client, system, QUESTION)
    assert ask(client, {**system, "role": "developer"}, QUESTION).choices[0].message.content == plain.choices[0].message.content
    parts = {"role": "user", "content": [{"type": "text", "text": QUESTION["content"]}]}
    assert ask(client, system, parts).choices[0].message.content == plain.choices[0].message.content
    two_parts = {"role": "user", "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]}
    one_part = {"role": "user", "content": "What is the capital\nof France?"}
    assert ask(client, two_parts).choices[0].message.content == ask(client, one_part).choices[0].message.content


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.0, "seed": 3, "n": 2}])
def test_a_stream_says_the_same(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = ask(client, **options)
    chunks = list(ask(client, stream=True, **options))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert all(c.delta.role is None for c in mine[1:])
        assert joined(chunks, choice.index) == choice.message.content
        assert [c.finish_reason for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason


def test_stream_usage(client: openai.OpenAI) -> None:
    whole = ask(client).usage
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    """The bytes of the tokens spell the answer; greedy choices lead their alternatives, which are in order."""
    answer = ask(client, logprobs=True, top_logprobs=4, stream=stream)
    if stream:
        chunks = list(answer)
        text = joined(chunks)
        content = [entry for chunk in chunks for c in chunk.choices if c.logprobs is not None for entry in c.logprobs.content]
    else:
        text, content = answer.choices[0].message.content, answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode().startswith(text)
    for entry in content:
        values = [other.logprob for other in entry.top_logprobs]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == values[0] <= 0


def test_logprobs_of_sampled_tokens(client: openai.OpenAI) -> None:
    """Whatever was drawn, the alternatives are the most probable tokens, and the drawn one is no better than they are."""
    content = ask(client, temperature=1.8, seed=1, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    for entry in content:
        values = [other.logprob for other in entry.top_logprobs]
        assert len(values) == 2
        assert entry.token in [other.token for other in entry.top_logprobs] or entry.logprob <= values[-1]
    assert all(not entry.top_logprobs for entry in ask(client, logprobs=True).choices[0].logprobs.content)


def test_both_names_of_the_limit(client: openai.OpenAI) -> None:
    extra = {"ignore_eos": True}
    assert ask(client, max_tokens=5, extra_body=extra).usage.completion_tokens == 5
    assert ask(client, max_tokens=openai.omit, max_completion_tokens=6, extra_body=extra).usage.completion_tokens == 6


def test_stop(client: openai.OpenAI) -> None:
    free = ask(client).choices[0].message.content
    stop = free[5:9]
    for stream in (False, True):
        answer = ask(client, stop=stop, stream=stream)
        assert (joined(answer) if stream else answer.choices[0].message.content) == free[: free.index(stop)]


def test_continue_final_message(client: openai.OpenAI) -> None:
    """To go on with the beginning of its own answer gives the rest of that answer."""
    whole = ask(client, extra_body={"return_token_ids": True})
    text: str = whole.choices[0].message.content
    half = len(text) // 2
    while text[half] != " ":  # where tokens begin
        half += 1
    rest = ask(client, SYSTEM, QUESTION, {"role": "assistant", "content": text[:half]}, extra_body={"continue_final_message": True})
    assert text[:half] + rest.choices[0].message.content == text
    prompt = whole.prompt_token_ids
    no_opening = ask(client, max_tokens=1, extra_body={"add_generation_prompt": False, "return_token_ids": True}).prompt_token_ids
    assert no_opening == prompt[: len(no_opening)]
    assert len(no_opening) < len(prompt)


def test_defaults_pass(client: openai.OpenAI) -> None:
    """What the API has and this server has not may be sent as long as it asks for nothing."""
    plain = ask(client).choices[0].message.content
    spelled_out = ask(
        client,
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        modalities=["text"],
        parallel_tool_calls=True,
        store=False,
        metadata={"purpose": "test"},
        user="someone",
        service_tier="auto",
        stop=None,
        seed=None,
        logprobs=False,
        top_p=1,
    )
    assert spelled_out.choices[0].message.content == plain


async def test_async_client(client: openai.OpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="unused") as async_client:
        stream: Any = await async_client.chat.completions.create(
            model=MODEL, messages=[SYSTEM, QUESTION], temperature=0, max_tokens=24, stream=True  # type: ignore[list-item]
        )  # fmt: skip
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == ask(client).choices[0].message.content
