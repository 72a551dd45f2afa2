"""Malformed requests of every kind: each is answered in the OpenAI API's words, names the field, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import openai
import pytest

from .process import MAX_MODEL_LEN, MODEL, ServerProcess

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def post(server: ServerProcess, path: str, content: bytes, content_type: str | None = "application/json") -> httpx.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return server.http.post(server.url + path, content=content, headers=headers)


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


# fields of a completion (beside a good prompt, unless they replace it), the field to blame, and what the message must contain
BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "null"),
    ({"prompt": 3}, "prompt", "3"),
    ({"prompt": {}}, "prompt", "list of strings"),
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt[0]", "empty"),
    ({"prompt": ["a", 1]}, "prompt[1]", "1"),
    ({"prompt": [1, "a"]}, "prompt[1]", '"a"'),
    ({"prompt": [[1], "a"]}, "prompt[1]", '"a"'),
    ({"prompt": [-1]}, "prompt[0]", "-1"),
    ({"prompt": [1.5]}, "prompt[0]", "1.5"),
    ({"prompt": [True]}, "prompt[0]", "true"),
    ({"prompt": [10**6]}, "prompt", "1000000"),
    ({"prompt": ["x"] * 2049}, "prompt", "2048"),
    ({"max_tokens": 0}, "max_tokens", "0"),
    ({"max_tokens": -5}, "max_tokens", "-5"),
    ({"max_tokens": "7"}, "max_tokens", '"7"'),
    ({"max_tokens": 2.5}, "max_tokens", "2.5"),
    ({"max_tokens": 10**30}, "max_tokens", "1000000"),
    ({"max_tokens": True}, "max_tokens", "true"),
    ({"max_tokens": MAX_MODEL_LEN}, "prompt", str(MAX_MODEL_LEN)),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": 101}, "temperature", "101"),
    ({"temperature": "hot"}, "temperature", "hot"),
    ({"temperature": float("nan")}, "temperature", "NaN"),
    ({"temperature": float("inf")}, "temperature", "Infinity"),
    ({"top_p": 0}, "top_p", "0"),
    ({"top_p": 1.01}, "top_p", "1.01"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"min_p": 2}, "min_p", "2"),
    ({"n": 0}, "n", "0"),
    ({"n": 129}, "n", "129"),
    ({"best_of": 129}, "best_of", "129"),
    ({"n": 2, "best_of": 1}, "best_of", "at least n (2)"),
    ({"n": 2, "best_of": 3, "stream": True}, "best_of", "must equal n (2)"),
    ({"best_of": 128, "prompt": ["x"] * 17}, "best_of", "2176"),
    ({"n": 128, "prompt": ["x"] * 17}, "n", "2176"),
    ({"seed": 2**63}, "seed", "9223372036854775808"),
    ({"seed": "a"}, "seed", '"a"'),
    ({"stop": ""}, "stop", '""'),
    ({"stop": ["a", ""]}, "stop[1]", '""'),
    ({"stop": ["x"] * 17}, "stop", "16"),
    ({"stop": 5}, "stop", "5"),
    ({"stop": "x" * 1025}, "stop", "1024"),
    ({"stop": ["a", "x" * 10_000_000]}, "stop[1]", "1024"),
    ({"prompt": "x" * 10_000_000}, "prompt", "at least"),
    ({"prompt": ["a", "x" * 10_000_000]}, "prompt", "at least"),
    ({"prompt": [1] * 900_000}, "prompt", "900000 tokens"),
    ({"x" * 10_000_000: 1}, "x" * 79 + "…", "not a parameter"),
    ({"user": 10**400}, "user", "string"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-2"),
    ({"truncate_prompt_tokens": 2**31}, "truncate_prompt_tokens", "2147483648"),
    ({"truncate_prompt_tokens": "all"}, "truncate_prompt_tokens", "all"),
    ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens", "true"),
    ({"include_reasoning": True}, "include_reasoning", "not a parameter"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "-1"),
    ({"min_tokens": -1}, "min_tokens", "-1"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "8 tokens"),
    ({"logprobs": 21}, "logprobs", "21"),
    ({"logprobs": True}, "logprobs", "true"),
    ({"echo": 1}, "echo", "1"),
    ({"max_tokens": 0, "logprobs": 0}, "max_tokens", "echo"),
    ({"echo": True, "max_tokens": -1}, "max_tokens", "-1"),
    ({"stream": "yes"}, "stream", "yes"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "not a parameter"),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"presence_penalty": 2.1}, "presence_penalty", "2.1"),
    ({"frequency_penalty": -3}, "frequency_penalty", "-3"),
    ({"frequency_penalty": "1"}, "frequency_penalty", "1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"typical_p": 0}, "typical_p", "0"),
    ({"logit_bias": {"5": -101}}, "logit_bias.5", "-101"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x", "x"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "-1"),
    ({"logit_bias": {"50256": -100}}, "logit_bias.50256", "below 49152"),
    ({"logit_bias": []}, "logit_bias", "[]"),
    ({"bad_words": "a"}, "bad_words", "a"),
    ({"bad_words": ["a", " "]}, "bad_words[1]", " "),
    ({"bad_words": ["a", ""]}, "bad_words[1]", "at least 1 character"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "[]"),
    ({"allowed_token_ids": [5, 49152]}, "allowed_token_ids[1]", "below 49152"),
    ({"allowed_token_ids": [2], "min_tokens": 1}, "allowed_token_ids", "forbid every one"),
    ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
    ({"use_beam_search": 1}, "use_beam_search", "1"),
    ({"use_beam_search": True, "best_of": 65}, "best_of", "at most 64"),
    ({"use_beam_search": True, "n": 65}, "n", "at most 64"),
    ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of", "at least n (3)"),
    ({"use_beam_search": True, "temperature": 0.5}, "temperature", "use_beam_search"),
    ({"use_beam_search": True, "top_p": 0.5}, "top_p", "use_beam_search"),
    ({"use_beam_search": True, "presence_penalty": 1}, "presence_penalty", "use_beam_search"),
    ({"use_beam_search": True, "logit_bias": {"5": 1}}, "logit_bias", "use_beam_search"),
    ({"use_beam_search": True, "prompt_logprobs": 0}, "prompt_logprobs", "use_beam_search"),
    ({"use_beam_search": True, "echo": True, "logprobs": 1}, "logprobs", "use_beam_search"),
    ({"use_beam_search": True, "echo": True, "max_tokens": 0}, "max_tokens", "use_beam_search"),
    ({"use_beam_search": True, "early_stopping": "always"}, "early_stopping", "always"),
    ({"use_beam_search": True, "length_penalty": "1"}, "length_penalty", "1"),
    ({"use_beam_search": True, "length_penalty": 101}, "length_penalty", "101"),
    ({"length_penalty": 2}, "length_penalty", "use_beam_search is true"),
    ({"early_stopping": True}, "early_stopping", "use_beam_search is true"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "21"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "-1"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream is false"),
    ({"guided_json": {}}, "guided_json", "not a parameter"),
    ({"model": 3}, "model", "3"),
]

BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", "null"),
    ({"messages": []}, "messages", "empty"),
    ({"messages": "Hello"}, "messages", "Hello"),
    ({"messages": ["Hello"]}, "messages[0]", "Hello"),
    ({"messages": [{"content": "Hello"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tool"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "x"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "image_url",
    ),
    ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages[0].colour", "not a parameter"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls", "{}"),
    ({"messages": [{"role": "user", "content": "word " * 2 * MAX_MODEL_LEN}]}, "messages", str(MAX_MODEL_LEN)),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs is true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
    ({"logprobs": 2}, "logprobs", "2"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "6"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "0"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "not supported"),
    ({"functions": [{"name": "f"}]}, "functions", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "not supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ({"audio": {"voice": "alloy"}}, "audio", "not supported"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"store": True}, "store", "not supported"),
    ({"web_search_options": {}}, "web_search_options", "not supported"),
    ({"service_tier": "flex"}, "service_tier", "flex"),
    ({"metadata": {"a": 1}}, "metadata.a", "1"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "template"),
    ({"continue_final_message": True}, "continue_final_message", "assistant"),
    ({"prompt": "x"}, "prompt", "not a parameter"),
    ({"messages": [{"role": "user", "content": "x" * 10_000_000}]}, "messages", "at least"),
    ({"messages": [{"role": "x" * 10_000_000, "content": "x"}]}, "messages[0].role", "xxx"),
    ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name", "5"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "messages[0].reasoning_content", "not a parameter"),
    ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": 1}]}, "messages[0].reasoning_content", "1"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 10_000_000}]}]}, "messages", "at least"),
    ({"include_reasoning": "no"}, "include_reasoning", "no"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ({"chat_template_kwargs": {"messages" * 1_000_000: 1, "not an identifier": 1}}, "chat_template_kwargs.not an identifier", "template"),
    ({"chat_template_kwargs": {"-" * 10_000_000: 1}}, "chat_template_kwargs." + "-" * 138 + "…", "template"),
    ({"metadata": {"x" * 10_000_000: 1}}, "metadata." + "x" * 79 + "…", "1"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "[]"),
]


@pytest.mark.parametrize(("fields", "param", "says"), BAD_COMPLETIONS, ids=lambda value: json.dumps(value)[:50])
def test_bad_completions(server: ServerProcess, fields: dict[str, Any], param: str, says: str) -> None:
    error = error_of(post(server, COMPLETIONS, json.dumps({"prompt": "Hello", **fields}).encode()))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(("fields", "param", "says"), BAD_CHATS, ids=lambda value: json.dumps(value)[:50])
def test_bad_chats(server: ServerProcess, fields: dict[str, Any], param: str, says: str) -> None:
    error = error_of(post(server, CHAT, json.dumps({**HELLO, **fields}).encode()))
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_streams_are_plain_errors(server: ServerProcess, stream: bool) -> None:
    """Also what only the engine finds out."""
    error = error_of(post(server, COMPLETIONS, json.dumps({"prompt": [49_152], "stream": stream}).encode()))
    assert error["param"] == "prompt"
    assert "49152" in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"prompt": "x",}',
        b"{'prompt': 'x'}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"user": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b"\x1f\x8b\x08\x00not gzip",
        "{\"prompt\": \"x\"}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_bodies_that_are_no_requests(server: ServerProcess, path: str, body: bytes) -> None:
    error = error_of(post(server, path, body))
    assert len(error["message"]) < 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None])
def test_bodies_of_other_types(server: ServerProcess, content_type: str | None) -> None:
    error = error_of(post(server, COMPLETIONS, b'{"prompt": "x", "max_tokens": 1}', content_type), 415)
    assert error["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_types_that_are_json(server: ServerProcess, content_type: str) -> None:
    assert post(server, COMPLETIONS, b'{"prompt": "x", "max_tokens": 1}', content_type).status_code == 200


def test_a_body_too_large(server: ServerProcess) -> None:
    """By its declared length it is refused before it comes, otherwise once it has grown too large."""
    limit = 32 << 20
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {limit + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    chunk = b" " * (1 << 20)
    try:
        response = httpx.post(
            server.url + COMPLETIONS, content=(chunk for _ in range(34)), headers={"Content-Type": "application/json"}, timeout=60
        )
    except httpx.WriteError:
        return  # closed on us before we had sent it all
    assert error_of(response, 413)["code"] == "body_too_large"


def test_unknown_models(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.models.retrieve("gpt-4o"),
        lambda: client.models.retrieve("org/name"),
        lambda: client.completions.create(model="gpt-4o", prompt="x"),
        lambda: client.chat.completions.create(model="", messages=HELLO["messages"]),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        assert MODEL in str(caught.value)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/models/", "/v1/embeddings", "/v1/completions/", "/docs/../health", "/docs/x.js", "/%00"]
)
def test_unknown_urls(server: ServerProcess, path: str) -> None:
    response = httpx.post(server.url + path, json={})
    if response.status_code != 405:
        assert error_of(response, 404)["code"] in ("unknown_url", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("GET", COMPLETIONS, "POST"), ("DELETE", CHAT, "POST"), ("POST", "/v1/models", "GET")]
)
def test_wrong_methods(server: ServerProcess, method: str, path: str, allow: str) -> None:
    response = httpx.request(method, server.url + path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allow
