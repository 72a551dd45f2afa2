"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, beside the tokenizer itself and what generation counts; prompts that are cut."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octavo.text import Tokenizer, load_chat_template, load_tokenizer
from octavo.weights import Checkpoint

from .process import MAX_MODEL_LEN, MODEL, ServerProcess

HELLO = [{"role": "user", "content": "Hello"}]
TEXTS = ["", "Hello world", "naïve 東京 🙂 \u0000 \r\n\t", "<|im_start|>user\nHi<|im_end|>", "عربي עברית", "x" * 3000]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Checkpoint) -> Tokenizer:
    return load_tokenizer(smollm2)


def post(server: ServerProcess, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = server.http.post(server.url + path, json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer if status == 200 else answer["error"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:16]))
def test_there_and_back(server: ServerProcess, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert post(server, "/tokenize", prompt=text) == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert post(server, "/tokenize", model=MODEL, prompt=text, return_token_strs=True)["token_strs"] == [*map(tokenizer.id_to_token, ids)]
    assert post(server, "/detokenize", tokens=ids) == {"prompt": text}


def test_every_token_can_be_shown(server: ServerProcess, tokenizer: Tokenizer) -> None:
    """More of them than are turned into text at once, and each of them alone is UTF-8, whole or replaced."""
    ids = list(range(tokenizer.vocab_size))
    assert post(server, "/detokenize", model=MODEL, tokens=ids)["prompt"] == tokenizer.decode(ids, skip_special_tokens=False)
    assert post(server, "/detokenize", tokens=[])["prompt"] == ""


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False}, {"add_special_tokens": True}])
def test_conversations(server: ServerProcess, smollm2: Checkpoint, tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    template = load_chat_template(smollm2)
    assert template is not None
    text = template.render(HELLO, add_generation_prompt=options.get("add_generation_prompt", True))
    expected = tokenizer.encode(text, add_special_tokens=options.get("add_special_tokens", False))
    assert post(server, "/tokenize", messages=HELLO, **options)["tokens"] == expected


def test_a_conversation_counts_as_it_is_served(server: ServerProcess) -> None:
    said: dict[str, Any] = {
        "messages": [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "Good"}]}],
        "continue_final_message": True,
        "chat_template_kwargs": {"unused": 1},
    }
    served = post(server, "/v1/chat/completions", **said, max_tokens=1, return_token_ids=True)
    counted = post(server, "/tokenize", **said)
    assert counted["tokens"] == served["prompt_token_ids"]
    assert counted["count"] == served["usage"]["prompt_tokens"]


def test_what_overflows_is_counted(server: ServerProcess, tokenizer: Tokenizer) -> None:
    text = "word " * (2 * MAX_MODEL_LEN)
    assert post(server, "/tokenize", prompt=text)["count"] == len(tokenizer.encode(text)) > MAX_MODEL_LEN


def test_info(server: ServerProcess, smollm2: Checkpoint, tokenizer: Tokenizer) -> None:
    info = httpx.get(f"{server.url}/tokenizer_info").json()
    template = load_chat_template(smollm2)
    assert template is not None
    assert (info["model"], info["tokenizer_class"], info["max_model_len"]) == (MODEL, "BPE", MAX_MODEL_LEN)
    assert info["vocab_size"] == tokenizer.vocab_size
    assert info["chat_template"] == template.source
    assert info["reasoning_tags"] is None
    assert (info["eos_token"], info["eos_token_id"]) == ("<|im_end|>", tokenizer.eos_token_id)
    assert set(info["eos_token_ids"]) == tokenizer.eos_token_ids
    assert set(info["special_tokens"].values()) == tokenizer.special_ids
    for token, token_id in info["special_tokens"].items():
        assert post(server, "/tokenize", prompt=token)["tokens"] == [token_id]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/tokenize", {}, "prompt", "required"),
    ("/tokenize", {"prompt": None}, "prompt", "null"),
    ("/tokenize", {"prompt": 7}, "prompt", "7"),
    ("/tokenize", {"prompt": ["a"]}, "prompt", "a"),
    ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "either"),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "not a parameter"),
    ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs", "1"),
    ("/tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens", "no"),
    ("/tokenize", {"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ("/tokenize", {"prompt": "a" * 10_000_000}, "prompt", "too long to be tokenized"),
    ("/tokenize", {"prompt": "a" * 10_000_000, "truncate_prompt_tokens": 1}, "prompt", "too long to be tokenized"),
    ("/tokenize", {"messages": []}, "messages", "empty"),
    ("/tokenize", {"messages": None}, "messages", "null"),
    ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ("/tokenize", {"messages": HELLO, "continue_final_message": True}, "continue_final_message", "assistant"),
    ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "template"),
    ("/detokenize", {}, "tokens", "required"),
    ("/detokenize", {"tokens": None}, "tokens", "null"),
    ("/detokenize", {"tokens": "1"}, "tokens", "1"),
    ("/detokenize", {"tokens": [1, -1]}, "tokens[1]", "-1"),
    ("/detokenize", {"tokens": [1, "2"]}, "tokens[1]", "2"),
    ("/detokenize", {"tokens": [1, 2.5]}, "tokens[1]", "2.5"),
    ("/detokenize", {"tokens": [1, 49152]}, "tokens[1]", "49151"),
    ("/detokenize", {"tokens": [10**30]}, "tokens[0]", "10000000"),
    ("/detokenize", {"tokens": [1] * 1_000_001}, "tokens", "1000000"),
    ("/detokenize", {"tokens": [1], "prompt": "x"}, "prompt", "not a parameter"),
]


@pytest.mark.parametrize(("path", "body", "param", "says"), BAD, ids=lambda value: str(value)[:40])
def test_refusals(server: ServerProcess, path: str, body: dict[str, Any], param: str, says: str) -> None:
    error = post(server, path, 400, **body)
    assert error["param"] == param
    assert says in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_unknown_models(server: ServerProcess, path: str) -> None:
    assert post(server, path, 404, model="gpt-4o", **({"prompt": "x"} if path == "/tokenize" else {"tokens": [1]}))["param"] == "model"


# -- truncate_prompt_tokens ---------------------------------------------------------------------------------------------

LONG = "One sentence after another. " * 1000


@pytest.mark.parametrize("keep", [1, 7, 2000])
@pytest.mark.parametrize("stream", [False, True])
def test_the_last_tokens_are_kept(server: ServerProcess, tokenizer: Tokenizer, keep: int, stream: bool) -> None:
    """A cut prompt is served exactly like one that never had more; ``echo`` shows what was left."""
    ids = tokenizer.encode(LONG)[-keep:]
    fields: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "return_token_ids": True}
    cut = post(server, "/v1/completions", prompt=LONG, truncate_prompt_tokens=keep, **fields)
    alone = post(server, "/v1/completions", prompt=ids, **fields)
    assert cut["choices"] == alone["choices"]
    assert cut["usage"]["prompt_tokens"] == keep
    assert post(server, "/tokenize", prompt=LONG, truncate_prompt_tokens=keep)["tokens"] == ids
    if stream:
        text = server.http.post(
            f"{server.url}/v1/completions", json={"prompt": LONG, "truncate_prompt_tokens": keep, "stream": True, **fields}
        ).text
        assert f'"prompt_token_ids": {ids}' in text
    echoed = post(server, "/v1/completions", prompt=LONG, truncate_prompt_tokens=keep, echo=True, max_tokens=1)["choices"][0]["text"]
    assert echoed.startswith(tokenizer.decode(ids))


def test_short_prompts_stay_whole(server: ServerProcess) -> None:
    for keep in (-1, 100, 2**31 - 1):
        fields = {"truncate_prompt_tokens": keep, "max_tokens": 1, "return_token_ids": True}
        body = post(server, "/v1/completions", prompt=[[1, 2], [5, 6, 7]], **fields)
        assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[1, 2], [5, 6, 7]]
    body = post(server, "/v1/completions", prompt=[[1, 2], [5, 6, 7]], truncate_prompt_tokens=2, max_tokens=1, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[1, 2], [6, 7]]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("max_tokens", [1, 8, None])
def test_as_many_as_fit(server: ServerProcess, path: str, max_tokens: int | None) -> None:
    prompt: dict[str, Any] = {"prompt": LONG} if "chat" not in path else {"messages": [{"role": "user", "content": LONG}]}
    fields = prompt if max_tokens is None else {**prompt, "max_tokens": max_tokens}
    refused = post(server, path, 400, **fields)
    assert refused["code"] == "context_length_exceeded"
    assert refused["param"] == next(iter(prompt))
    assert "truncate_prompt_tokens" in refused["message"]
    usage = post(server, path, **fields, truncate_prompt_tokens=-1, ignore_eos=True)["usage"]
    assert usage["prompt_tokens"] == MAX_MODEL_LEN - (max_tokens or 1)
    assert usage["completion_tokens"] == (max_tokens or 1)


@pytest.mark.parametrize(("keep", "max_tokens"), [(MAX_MODEL_LEN, 1), (2000, 49), (-1, MAX_MODEL_LEN), (-1, 10 * MAX_MODEL_LEN)])
def test_what_is_left_may_still_be_too_long(server: ServerProcess, keep: int, max_tokens: int) -> None:
    error = post(server, "/v1/completions", 400, prompt=LONG, truncate_prompt_tokens=keep, max_tokens=max_tokens)
    assert error["code"] == "context_length_exceeded"
