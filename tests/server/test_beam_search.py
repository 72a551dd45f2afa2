"""Beam search and ``best_of`` over HTTP, in the words of vLLM's API: ``use_beam_search``, ``length_penalty``, ``early_stopping``."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from .process import MODEL, ServerProcess

PROMPT = "The capital of France is"


def search(client: openai.OpenAI, *, extra: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    body = {"use_beam_search": True, "return_token_ids": True, **(extra or {})}
    return client.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 12, **kwargs}, extra_body=body)


def total(choice: Any) -> float:
    logprobs: list[float] = choice.logprobs.token_logprobs
    return sum(logprobs)


def test_the_answers_are_ranked_by_score(client: openai.OpenAI) -> None:
    for penalty in (0.0, 1.0, 2.0):
        completion = search(client, n=4, logprobs=1, extra={"length_penalty": penalty})
        scores = [total(choice) / len(choice.token_ids) ** penalty for choice in completion.choices]
        assert scores == sorted(scores, reverse=True)
        assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
        assert len({choice.text for choice in completion.choices}) == 4
        assert completion.usage.completion_tokens == sum(len(choice.token_ids) for choice in completion.choices)


def test_it_finds_more_probable_answers_than_greedy_choice(client: openai.OpenAI) -> None:
    greedy = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
    ).choices[0]
    best = search(client, best_of=8, logprobs=0, extra={"ignore_eos": True, "length_penalty": 0}).choices
    assert len(best) == 1
    assert total(best[0]) > total(greedy)


def test_a_wider_search_gives_its_best(client: openai.OpenAI) -> None:
    every = search(client, n=6, extra={"early_stopping": "never"}).choices
    best = search(client, n=2, best_of=6, extra={"early_stopping": "never"}).choices
    assert [choice.text for choice in best] == [choice.text for choice in every[:2]]


def test_stop_strings_end_answers(client: openai.OpenAI) -> None:
    for choice in search(client, n=4, max_tokens=20, stop=[",", "."], temperature=0).choices:
        assert not {",", "."} & set(choice.text)
        if choice.finish_reason == "stop":
            assert choice.stop_reason in (",", ".")
        else:
            assert len(choice.token_ids) == 20


def test_a_stream_gets_the_answers_whole(client: openai.OpenAI) -> None:
    whole = search(client, n=3)
    chunks = list(search(client, n=3, stream=True, stream_options={"include_usage": True}))
    assert [(c.choices[0].index, c.choices[0].text) for c in chunks[:-1]] == [(c.index, c.text) for c in whole.choices]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_chat(client: openai.OpenAI, server: ServerProcess) -> None:
    messages: Any = [{"role": "user", "content": "Name a colour."}]
    body = {"use_beam_search": True, "best_of": 4, "early_stopping": True, "length_penalty": 0.5}
    answer = client.chat.completions.create(model=MODEL, messages=messages, n=2, max_tokens=10, extra_body=body)
    assert len({choice.message.content for choice in answer.choices}) == 2
    assert "sharing saved" in server.log
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, n=2, max_tokens=10, stream=True, extra_body=body))
    texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in (0, 1)]
    assert texts == [choice.message.content for choice in answer.choices]


def test_best_of_samples_and_returns_the_most_probable(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "seed": 5, "logprobs": 0}
    every = client.completions.create(**fields, n=6).choices
    best = client.completions.create(**fields, n=2, best_of=6).choices
    assert [choice.text for choice in best] == [choice.text for choice in sorted(every, key=total, reverse=True)[:2]]
    assert [total(choice) for choice in best] == pytest.approx(sorted(map(total, every), reverse=True)[:2])
