"""Starting and stopping: ports, signals, and the options that need a server of their own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from .process import MODEL, ServerProcess, running_server

LONG = {"prompt": "Count on: one, two,", "max_tokens": 1900, "ignore_eos": True}


@pytest.fixture(scope="module")
def guarded(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a key, an allowed origin and a small body limit."""
    flags = ("--api-key", "secret", "--cors-origin", "https://app.example", "--max-body-bytes", "4096", "--max-num-seqs", "4")
    with running_server(tmp_path_factory.mktemp("guarded") / "log", *flags) as server:
        yield server


def test_api_key(guarded: ServerProcess) -> None:
    url = f"{guarded.url}/v1/models"
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Basic secret"},
        {"Authorization": "Bearer"},
    )
    for headers in wrong:
        response = httpx.get(url, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
    assert httpx.get(url, headers={"Authorization": "Bearer secret"}).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        guarded.client().completions.create(model=MODEL, prompt="x")
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret") as client:
        assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    document = httpx.get(f"{guarded.url}/openapi.json").json()
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]


def test_the_tokenizer_asks_for_the_key(guarded: ServerProcess) -> None:
    document = httpx.get(f"{guarded.url}/openapi.json").json()
    calls: tuple[tuple[str, str, dict[str, object] | None], ...] = (
        ("POST", "/tokenize", {"prompt": "x"}),
        ("POST", "/detokenize", {"tokens": [1]}),
        ("GET", "/tokenizer_info", None),
    )
    for method, path, body in calls:
        assert httpx.request(method, guarded.url + path, json=body).status_code == 401
        assert httpx.request(method, guarded.url + path, json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert document["paths"][path][method.lower()]["security"] == [{"bearer": []}]


def test_cors(guarded: ServerProcess) -> None:
    """A browser's preflight passes without a key; the real request does not."""
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(f"{guarded.url}/v1/completions", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert httpx.options(f"{guarded.url}/v1/completions", headers={**asks, "Origin": "https://other.example"}).status_code == 400
    refused = httpx.get(f"{guarded.url}/v1/models", headers={"Origin": "https://app.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example", "the page may read why"


@pytest.mark.parametrize("declared", [True, False])
def test_body_limit(guarded: ServerProcess, declared: bool) -> None:
    body = json.dumps({"prompt": "x" * 5000}).encode()
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    response = httpx.post(f"{guarded.url}/v1/completions", content=body if declared else iter([body]), headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_no_cors_unless_asked(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}/v1/models", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("listening", [True, False])
def test_a_port_in_use_is_one_sentence(listening: bool) -> None:
    """Said at once, before any model is loaded."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        if listening:
            holder.listen()
        port = str(holder.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "octavo.server", "--port", port, "--model", "/nowhere"], capture_output=True, text=True
        )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is already in use" in result.stderr


def test_hosts_and_ports_that_cannot_be() -> None:
    for flags, says in ((["--host", "no.such.host.invalid"], "no.such.host.invalid"), (["--port", "70000"], "70000")):
        result = subprocess.run([sys.executable, "-m", "octavo.server", *flags, "--model", "/nowhere"], capture_output=True, text=True)
        assert result.returncode == 1
        assert says in result.stderr
        assert "Traceback" not in result.stderr


def _exit_of(server: ServerProcess, *signals: signal.Signals, within_s: float) -> float:
    """Send the signals, expect a clean end; returns the seconds it took."""
    began_s = time.monotonic()
    for number in signals:
        server.process.send_signal(number)
        time.sleep(0.2)
    assert server.process.wait(within_s) == 0, server.log
    assert "Traceback" not in server.log
    return time.monotonic() - began_s


@pytest.mark.parametrize(
    ("grace_s", "signals"),
    [("0.5", [signal.SIGTERM]), ("0.5", [signal.SIGINT]), ("30", [signal.SIGINT, signal.SIGINT])],
    ids=["SIGTERM", "SIGINT", "impatient"],
)
def test_signals_end_streams(smollm2_path: Path, tmp_path: Path, grace_s: str, signals: list[signal.Signals]) -> None:
    """After the grace, or the second signal, a stream ends with an error event and a plain request with 503."""
    with running_server(tmp_path / "log", "--grace-s", grace_s) as server:
        plain: list[httpx.Response] = []
        waiter = threading.Thread(target=lambda: plain.append(httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=60)))
        waiter.start()
        with server.client().completions.create(
            model=MODEL, stream=True, extra_body={"ignore_eos": True}, prompt="One, two,", max_tokens=1900
        ) as stream:
            next(iter(stream))
            ender = threading.Thread(target=_exit_of, args=(server, *signals), kwargs={"within_s": 10})
            ender.start()
            with pytest.raises(openai.APIError) as caught:
                for _ in stream:
                    pass
        ender.join()
        waiter.join()
        assert caught.value.code == "server_shutting_down"
        assert plain[0].status_code == 503
        assert server.process.returncode == 0, server.log
        assert "Traceback" not in server.log


def test_short_requests_finish_within_the_grace(smollm2_path: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", "--grace-s", "20") as server:
        stream = server.client().completions.create(model=MODEL, stream=True, prompt="One", max_tokens=30, extra_body={"ignore_eos": True})
        first = next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        assert first.choices
        assert len([chunk for chunk in stream if chunk.choices]) >= 20
        assert server.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
