"""Models, health, metrics, version, docs, and what every response carries."""

from __future__ import annotations

import json
import re
import time

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from .process import MAX_MODEL_LEN, MODEL, ServerProcess


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "octavo")
    assert model.max_model_len == MAX_MODEL_LEN  # type: ignore[attr-defined]
    assert client.models.retrieve(MODEL) == model


def test_the_model_may_be_left_out(server: ServerProcess) -> None:
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=60).json()["model"] == MODEL


def test_health_and_version(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    version = httpx.get(f"{server.url}/version").json()
    assert version["model"] == MODEL
    assert version["system_fingerprint"]
    assert version["config"]["max_model_len"] == MAX_MODEL_LEN


def test_metrics_count_tokens(server: ServerProcess, client: openai.OpenAI) -> None:
    before = server.metric("octavo_generation_tokens_total")
    usage = client.completions.create(model=MODEL, prompt="Count me", max_tokens=7, extra_body={"ignore_eos": True}).usage
    assert usage is not None
    assert usage.completion_tokens == 7
    assert server.metric("octavo_generation_tokens_total") == before + 7
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"octavo_kv_blocks", "octavo_kv_blocks_in_use", "octavo_requests_running"} <= names
    openmetrics = httpx.get(f"{server.url}/metrics", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_the_chat_page_calls_only_what_is_here(server: ServerProcess) -> None:
    page = httpx.get(server.url)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"^\s*//.*$", "", page.text, flags=re.MULTILINE).replace("</", "")
    paths = set(httpx.get(f"{server.url}/openapi.json").json()["paths"]) | {"/docs"}
    called = {"/" + path for path in re.findall(r"""(?:fetch\(|href=)"([^":]+)\"""", page.text)}
    assert called == {"/v1/models", "/v1/chat/completions", "/docs"}
    assert called <= paths


def test_docs_need_no_other_machine(server: ServerProcess) -> None:
    """All that the page loads comes from here."""
    page = httpx.get(f"{server.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r"""(?:src|href)="([^"]+)"|url: "([^"]+)""", page.text)
    targets = [a or b for a, b in links]
    assert len(targets) >= 4
    for target in targets:
        assert "//" not in target
        asset = httpx.get(page.url.join(target))
        assert asset.status_code == 200
        assert asset.content


def test_openapi_describes_every_endpoint(server: ServerProcess) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models", "/v1/models/{model_id}", "/v1/completions", "/v1/chat/completions",
        "/tokenize", "/detokenize", "/tokenizer_info", "/health", "/metrics", "/version",
    }  # fmt: skip
    text = json.dumps(document)
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert reference in document["components"]["schemas"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", "/docs", "/metrics"])
def test_request_ids(server: ServerProcess, path: str) -> None:
    given = httpx.get(server.url + path, headers={"X-Request-Id": "my-request.1"})
    assert given.headers.get_list("x-request-id") == ["my-request.1"]
    made = {httpx.get(server.url + path).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    for bad in ("a b", "x" * 129, "tab\tbed"):
        assert httpx.get(server.url + path, headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_stream_headers_and_ending(server: ServerProcess) -> None:
    body = {"prompt": "One", "max_tokens": 3, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "s1"}, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-request-id"] == "s1"
        text = response.read().decode()
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-2])


def log_line(server: ServerProcess, request_id: str) -> str:
    """The one line of a request; it is written just after the last byte of the answer."""
    deadline_s = time.monotonic() + 5
    while not (lines := [line for line in server.log.splitlines() if f"[{request_id}]" in line]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    (line,) = lines
    return line


def test_log_lines(server: ServerProcess) -> None:
    body = {"prompt": "One", "max_tokens": 3, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "look-for-me"}, timeout=60)
    httpx.get(f"{server.url}/nothing%0Ahere", headers={"X-Request-Id": "look-for-me-too"})
    line = log_line(server, "look-for-me")
    assert re.search(r"POST /v1/completions 200 in \d+ ms: \d+ in( \(\d+ cached\))?, 3 out, ttft \d+ ms, [\d.]+ tok/s", line)
    line = log_line(server, "look-for-me-too")
    assert r"GET /nothing\nhere 404" in line


def test_the_logged_time_to_the_first_token_is_the_engines(server: ServerProcess) -> None:
    """Also for answers that are not streamed, whose tokens all arrive at the end."""
    for prompt in ("One", ["One, two", "Three, four, five"]):
        body = {"prompt": prompt, "max_tokens": 150, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": f"first-{len(prompt)}"}, timeout=60)
        found = re.search(r" in (\d+) ms: .* ttft (\d+) ms", log_line(server, f"first-{len(prompt)}"))
        assert found is not None
        assert 0 < int(found[2]) < int(found[1]) / 3


def test_one_connection_serves_many_requests(server: ServerProcess) -> None:
    """Streams, refusals and plain answers in turn on one kept-alive connection."""
    with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1), timeout=60) as connection:
        for _ in range(5):
            assert connection.post("/v1/completions", json={"prompt": "x", "max_tokens": 2, "stream": True}).text.endswith(
                "data: [DONE]\n\n"
            )
            assert connection.post("/v1/completions", json={"prompt": "x", "max_tokens": 0}).status_code == 400
            assert connection.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
            assert connection.get("/nowhere").status_code == 404
