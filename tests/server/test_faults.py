"""What clients see when something behind the server is slow or broken. The faults are put into a real server process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from .process import MODEL, ServerProcess, running_server

LONG = {"prompt": "Count on: one, two,", "max_tokens": 1900, "ignore_eos": True, "stream": True}

DEADLY = [6, 6, 6]
"""A prompt that breaks the engine."""
CONFUSING = [7, 7, 7]
"""A prompt for which the engine raises what it should not."""

PRELUDE = f"""
from octavo.engine.llm_engine import LLMEngine

add, step = LLMEngine.add_tokenized, LLMEngine.step

def faulty_add(self, request_id, text, token_ids, params):
    self.doomed = list(token_ids) == {DEADLY}
    if list(token_ids) == {CONFUSING}:
        raise RuntimeError("a secret of the engine")
    add(self, request_id, text, token_ids, params)

def faulty_step(self):
    if self.doomed:
        raise RuntimeError("the engine is broken on purpose")
    return step(self)

LLMEngine.add_tokenized, LLMEngine.step = faulty_add, faulty_step
"""


@pytest.fixture
def faulty(smollm2_path: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with running_server(tmp_path / "log", prelude=PRELUDE) as server:
        yield server


def test_keep_alive_while_nothing_comes(smollm2_path: Path, tmp_path: Path) -> None:
    """A stream that waits for its turn has its headers and a comment after a second, and can be left."""
    with running_server(tmp_path / "log", "--max-num-seqs", "1", "--grace-s", "0") as server:
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=LONG, timeout=60) as first:
            pieces = first.iter_raw()  # kept: dropping an iterator closes its response
            assert next(pieces).startswith(b"data: {")
            with httpx.stream("POST", url, json=LONG, timeout=5) as second:
                assert second.status_code == 200
                waiting = second.iter_raw()
                assert next(waiting) == b": keep-alive\n\n"
            deadline_s = time.monotonic() + 3
            while server.metric("octavo_requests_waiting") and time.monotonic() < deadline_s:
                time.sleep(0.02)
            assert server.metric("octavo_requests_waiting") == 0
            assert server.metric("octavo_requests_running") == 1
        server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_an_unexpected_error_keeps_its_secrets(faulty: ServerProcess, stream: bool) -> None:
    body = {"prompt": CONFUSING, "stream": stream}
    response = httpx.post(f"{faulty.url}/v1/completions", json=body, headers={"X-Request-Id": "find-me"}, timeout=60)
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "internal_error"
    assert "find-me" in error["message"]
    assert "secret" not in response.text
    assert "a secret of the engine" in faulty.log
    assert "[find-me]" in faulty.log
    assert httpx.post(f"{faulty.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=60).status_code == 200


def test_a_dead_engine_is_said_to_be_dead(faulty: ServerProcess) -> None:
    """Streams end with an error event, new requests and the health check get 503, and the process still stops cleanly."""
    client = faulty.client()
    stream = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=1900, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    with pytest.raises(openai.InternalServerError) as last_straw:
        client.completions.create(model=MODEL, prompt=DEADLY)
    assert last_straw.value.status_code == 503
    with pytest.raises(openai.APIError) as cut_off:
        list(stream)
    assert cut_off.value.code == last_straw.value.code == "engine_dead"
    health = httpx.get(f"{faulty.url}/health")
    assert health.status_code == 503
    assert health.json()["error"]["code"] == "engine_dead"
    for path, body in (("completions", {"prompt": "x"}), ("chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
        assert httpx.post(f"{faulty.url}/v1/{path}", json=body).status_code == 503
    assert httpx.get(f"{faulty.url}/v1/models").status_code == 200
    faulty.process.terminate()
    assert faulty.process.wait(10) == 0
