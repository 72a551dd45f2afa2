"""Many clients at once, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest

from .process import MODEL, ServerProcess

CROWD = 50


@pytest.fixture
def async_client(server: ServerProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=240)


async def complete(client: openai.AsyncOpenAI, number: int, *, stream: bool) -> tuple[str, list[int]]:
    """A request of its own kind for each number: lengths, seeds and sampling differ."""
    options = {
        "model": MODEL,
        "prompt": f"Story number {number % 7}: " + "once more, " * (number % 5),
        "max_tokens": 4 + number % 13,
        "temperature": (0.0, 0.7, 1.3)[number % 3],
        "seed": number,
        "logprobs": 0,
        "extra_body": {"return_token_ids": True, "top_k": (0, 40)[number % 2]},
    }
    if not stream:
        (choice,) = (await client.completions.create(**options)).choices  # type: ignore[call-overload]
        return choice.text, choice.token_ids
    text, ids = "", []
    async for chunk in await client.completions.create(**options, stream=True):  # type: ignore[call-overload]
        text += chunk.choices[0].text
        ids += chunk.choices[0].token_ids
    return text, ids


async def test_a_seed_gives_the_same_alone_and_in_a_crowd(async_client: openai.AsyncOpenAI) -> None:
    alone = [await complete(async_client, number, stream=False) for number in range(0, CROWD, 5)]
    crowd = await asyncio.gather(*(complete(async_client, number, stream=number % 2 == 0) for number in range(CROWD)))
    assert crowd[::5] == alone
    assert len(crowd) == CROWD


async def test_more_requests_than_sequences(async_client: openai.AsyncOpenAI) -> None:
    """What does not fit into a step waits its turn; nothing is refused or lost."""
    answers = await asyncio.gather(*(complete(async_client, number, stream=True) for number in range(96)))
    assert all(ids for _, ids in answers)


def _request(stream: bool, path: str = "/v1/completions", **fields: object) -> bytes:
    body = {"prompt": "Count on: one, two,", "max_tokens": 1500, "ignore_eos": True, "stream": stream, **fields}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _wait_until_busy(server: ServerProcess) -> None:
    deadline_s = time.monotonic() + 20
    while not server.blocks_in_use() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert server.blocks_in_use()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fields", [{}, {"n": 4}, {"prompt": ["one, two,", "three, four,", "five, six,"]}])
def test_a_client_that_leaves_frees_its_blocks(server: ServerProcess, stream: bool, fields: dict[str, Any]) -> None:
    with _connect(server) as connection:
        connection.sendall(_request(stream, **fields))
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        _wait_until_busy(server)
    server.wait_until_idle(within_s=3)


def test_leaving_while_the_prompt_is_computed(server: ServerProcess) -> None:
    with _connect(server) as connection:
        connection.sendall(_request(True, prompt=[7, 8, 9] * 600, max_tokens=100))
        _wait_until_busy(server)
    server.wait_until_idle(within_s=3)


def test_leaving_while_waiting_for_room(server: ServerProcess) -> None:
    """Many long requests, most of them queued, all gone at once."""
    connections = [_connect(server) for _ in range(80)]
    for number, connection in enumerate(connections):
        connection.sendall(_request(number % 2 == 0, seed=number))
    _wait_until_busy(server)
    for connection in connections:
        connection.close()
    server.wait_until_idle(within_s=5)
    assert server.metric("octavo_requests_waiting") == 0


def test_leaving_in_the_middle_of_the_body(server: ServerProcess) -> None:
    with _connect(server) as connection:
        connection.sendall(_request(True)[:-20])
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_others_go_on_when_one_leaves(server: ServerProcess, client: openai.OpenAI) -> None:
    def count() -> str:
        return client.completions.create(model=MODEL, prompt="Numbers:", max_tokens=40, temperature=0.8, seed=9).choices[0].text

    alone = count()
    with _connect(server) as connection:
        connection.sendall(_request(True))
        connection.recv(1024)
        stream = client.completions.create(model=MODEL, prompt="Numbers:", max_tokens=40, temperature=0.8, seed=9, stream=True)
        pieces = []
        for number, chunk in enumerate(stream):
            pieces.append(chunk.choices[0].text)
            if number == 5:
                connection.close()
    assert "".join(pieces) == alone
