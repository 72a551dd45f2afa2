"""Sampling parameters over HTTP, as the official client sends them: OpenAI's own fields, and vLLM's in ``extra_body``.

The log-probabilities of an answer are the model's own, so what bias and penalties make of them can be computed from it again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import openai
import pytest

from octavo.text import Tokenizer, load_tokenizer
from octavo.weights import Checkpoint

from .process import MODEL

PROMPT = "Red, blue, red, blue, red,"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2)


def complete(client: openai.OpenAI, *, extra: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    body = {"return_token_ids": True, "ignore_eos": True, **(extra or {})}
    fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 20, "temperature": 0, **kwargs}
    return client.completions.create(**fields, extra_body=body).choices[0]


def chat(client: openai.OpenAI, *, extra: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    body = {"return_token_ids": True, "ignore_eos": True, **(extra or {})}
    messages = [{"role": "user", "content": "Count from one to three."}]
    fields = {"model": MODEL, "messages": messages, "max_tokens": 20, "temperature": 0, **kwargs}
    return client.chat.completions.create(**fields, extra_body=body).choices[0]


def check_greedy(entries: list[Any], token_ids: list[int], tokenizer: Tokenizer, presence: float, frequency: float) -> None:
    """``entries``: of each token, (bytes, log-probability) of the most probable ones. The chosen one is the best after penalties."""
    by_bytes = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    counts: Counter[int] = Counter()
    moved = 0
    for top, chosen in zip(entries, token_ids, strict=True):
        scores = {}
        for spelled, logprob in top:
            token = by_bytes[bytes(spelled)]
            scores[token] = logprob - frequency * counts[token] - presence * (counts[token] > 0)
        assert chosen == max(scores, key=lambda token: scores[token])
        moved += chosen != by_bytes[bytes(top[0][0])]
        counts[chosen] += 1
    assert moved >= 3, "the penalties changed hardly anything"


def test_penalties_are_subtracted(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.75}
    answer = chat(client, logprobs=True, top_logprobs=20, max_tokens=40, **penalties)
    entries = [[(top.bytes, top.logprob) for top in entry.top_logprobs] for entry in answer.logprobs.content]
    check_greedy(entries, answer.token_ids, tokenizer, 1.5, 0.75)


def test_completions_and_chat_take_them(client: openai.OpenAI) -> None:
    for ask in (complete, chat):
        plain = ask(client).token_ids
        for kwargs in (
            {"frequency_penalty": 2.0, "presence_penalty": 2.0},
            {"extra": {"repetition_penalty": 1.8}},
            {"logit_bias": {str(plain[0]): -100}},
            {"extra": {"allowed_token_ids": sorted({*range(300, 900), plain[3]})}},
        ):
            assert ask(client, **kwargs).token_ids != plain, kwargs
        neutral = {"repetition_penalty": 1, "typical_p": 1, "bad_words": [], "min_p": 0, "top_k": 0}
        assert ask(client, frequency_penalty=0, presence_penalty=0, logit_bias={}, extra=neutral).token_ids == plain


def test_repetition_ends(client: openai.OpenAI) -> None:
    assert complete(client).text.count("red") >= 4
    assert complete(client, extra={"repetition_penalty": 3.0}).text.count("red") == 0


def test_bias_forces_and_forbids(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    plain = complete(client)
    forced = complete(client, logit_bias={"345": 100})
    assert forced.token_ids == [345] * 20
    forbidden = complete(client, logit_bias={str(token): -100 for token in plain.token_ids})
    assert not {*forbidden.token_ids} & {*plain.token_ids}


def test_bad_words_are_not_written(client: openai.OpenAI) -> None:
    assert "blue" in complete(client).text
    answer = complete(client, extra={"bad_words": ["blue", "red", "Ro"]})
    assert not any(word in answer.text for word in ("blue", " red"))
    assert "Ro" not in complete(client, temperature=1.5, seed=3, max_tokens=100, extra={"bad_words": ["Ro"]}).text


def test_allowed_tokens_are_all_there_is(client: openai.OpenAI) -> None:
    allowed = list(range(40, 60))
    answer = complete(client, temperature=2.0, seed=1, max_tokens=60, extra={"allowed_token_ids": allowed})
    assert {*answer.token_ids} <= {*allowed}
    assert len({*answer.token_ids}) > 3


def test_typical_sampling_is_seeded_like_the_rest(client: openai.OpenAI) -> None:
    one, two = (complete(client, temperature=1.0, seed=5, extra={"typical_p": 0.3, **more}).token_ids for more in ({}, {"n": 1}))
    assert one == two
    assert one != complete(client, temperature=1.0, seed=5).token_ids
