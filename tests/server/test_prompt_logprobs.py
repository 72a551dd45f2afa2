"""Log-probabilities of prompts over HTTP: ``echo`` with ``logprobs``, ``prompt_logprobs``, and nothing but these (``max_tokens`` 0)."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from octavo.text import Tokenizer, load_tokenizer
from octavo.weights import Checkpoint

from .process import MAX_MODEL_LEN, ServerProcess

PROMPT = "The three primary colours are red, green and"
HARD = "<|im_start|>user\nnaïve 👩‍🚀 日本<|im_end|>\n"


def post(server: ServerProcess, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    response = httpx.post(server.url + path, json={"temperature": 0, **body}, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def lists_of(choice: dict[str, Any]) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = choice["logprobs"]
    assert len({len(values) for values in lists.values()}) == 1
    return lists


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2)


def test_what_was_generated_is_as_probable_as_a_prompt(server: ServerProcess) -> None:
    """The same numbers, whether the tokens were chosen or given, the prefix cached or not, alone or among others."""
    made = post(server, prompt=PROMPT, max_tokens=20, ignore_eos=True, logprobs=3, echo=True, return_token_ids=True)["choices"][0]
    ids = made["prompt_token_ids"] + made["token_ids"]
    for prompt in (ids, [ids, [5, *ids], ids], [*ids, 11]):
        choices = post(server, prompt=prompt, max_tokens=0, logprobs=3, echo=True)["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["length"] * len(choices)
        for name, values in lists_of(choices[0]).items():
            assert values[: len(ids)] == made["logprobs"][name]
    given = lists_of(post(server, prompt=ids, max_tokens=0, logprobs=0, echo=True)["choices"][0])
    assert given["token_logprobs"] == made["logprobs"]["token_logprobs"]
    assert given["top_logprobs"] == [None] + [{}] * (len(ids) - 1)


@pytest.mark.parametrize("prompt", [PROMPT, HARD, [504, 0, 3575, 2, 282]], ids=["text", "hard text", "ids"])
@pytest.mark.parametrize("skip", [True, False])
def test_echo_shows_prompt_and_answer_as_one(server: ServerProcess, tokenizer: Tokenizer, prompt: Any, skip: bool) -> None:
    """The first token has no log-probability; each token stands where its offset says."""
    body = {"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "skip_special_tokens": skip, "logprobs": 2, "echo": True}
    choice = post(server, **body, return_token_ids=True)["choices"][0]
    lists, text = lists_of(choice), choice["text"]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    plain = post(server, **{**body, "echo": False})["choices"][0]
    begins = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    assert text == begins + plain["text"]
    assert lists["tokens"] == [tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert all(value <= 0 for value in lists["token_logprobs"][1:])
    assert all(1 <= len(top) <= 3 for top in lists["top_logprobs"][1:])
    assert lists["token_logprobs"][-6:] == plain["logprobs"]["token_logprobs"]
    offsets = lists["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[-6] == len(begins)
    for token, begin, end in zip(lists["tokens"], offsets, [*offsets[1:], len(text)], strict=True):
        assert "\ufffd" in token or text[begin:end] in (token, "")


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_streams_say_the_same(server: ServerProcess, max_tokens: int) -> None:
    body = {"prompt": [PROMPT, "One, two,"], "max_tokens": max_tokens, "n": 2, "seed": 1, "temperature": 1, "logprobs": 1, "echo": True}
    whole = post(server, **body)
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=60) as response:
        events = [json.loads(event.removeprefix("data: ")) for event in response.read().decode().split("\n\n")[:-2]]
    for expected in whole["choices"]:
        chunks = [choice for event in events for choice in event["choices"] if choice["index"] == expected["index"]]
        assert "".join(chunk["text"] for chunk in chunks) == expected["text"]
        assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == [expected["finish_reason"]]
        for name, values in lists_of(expected).items():
            assert [value for chunk in chunks if chunk["logprobs"] for value in chunk["logprobs"][name]] == values


def test_prompt_logprobs(server: ServerProcess, tokenizer: Tokenizer) -> None:
    """By token id, the prompt's own first; as many alternatives as were asked for, whatever ``logprobs`` asks for."""
    ids = tokenizer.encode(PROMPT)
    lists = lists_of(post(server, prompt=PROMPT, max_tokens=0, logprobs=0, echo=True)["choices"][0])
    for k, more in ((0, {}), (2, {}), (2, {"echo": True, "logprobs": 5}), (20, {"echo": True, "logprobs": 0, "max_tokens": 0})):
        choice = post(server, **{"prompt": PROMPT, "max_tokens": 2, "prompt_logprobs": k, **more})["choices"][0]
        first, *rest = choice["prompt_logprobs"]
        assert first is None
        assert len(rest) == len(ids) - 1
        for token_id, expected, position in zip(ids[1:], lists["token_logprobs"][1:], rest, strict=True):
            own, *best = position
            assert own == str(token_id)
            assert position[own]["logprob"] == expected
            assert position[own]["decoded_token"] == tokenizer.decode([token_id])
            ranks = [position[other]["rank"] for other in (own, *best)]
            assert sorted({*ranks[1:], *(rank for rank in ranks[:1] if rank <= k)}) == list(range(1, k + 1))
            values = [position[other]["logprob"] for other in best]
            assert values == sorted(values, reverse=True)


def test_prompt_logprobs_of_a_conversation(server: ServerProcess) -> None:
    body = {"messages": [{"role": "user", "content": "What is gravity?"}], "max_tokens": 3, "return_token_ids": True}
    answer = post(server, "/v1/chat/completions", **body, prompt_logprobs=1)
    ids = answer["prompt_token_ids"]
    prompt = post(server, prompt=ids, max_tokens=1, prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
    assert answer["prompt_logprobs"] == prompt
    assert "prompt_logprobs" not in post(server, "/v1/chat/completions", **body)


def test_a_prompt_may_fill_the_context(server: ServerProcess) -> None:
    ids = [100 + i % 1000 for i in range(MAX_MODEL_LEN)]
    answer = post(server, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == MAX_MODEL_LEN
    assert answer["usage"]["completion_tokens"] == 0
    cut = post(server, prompt=[7, 7, *ids], max_tokens=0, echo=True, logprobs=0, truncate_prompt_tokens=-1)
    assert cut["choices"][0]["logprobs"] == answer["choices"][0]["logprobs"]
    for prompt, max_tokens in (([7, *ids], 0), (ids, 1)):
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": max_tokens, "echo": True})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
