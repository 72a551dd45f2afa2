"""The HTTP client that loads every server alike: all requests at once on ``/v1/completions``, prompts as token ids."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any

TIMEOUT_S = 900


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON request. Raises ``RuntimeError`` with the server's answer unless the status is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}: {data[:300]!r}")
    answer: dict[str, Any] = json.loads(data)
    return answer


def healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        connection.close()
    except OSError:
        return False
    return response.status == 200


def complete_all(port: int, prompts: list[list[int]], output_len: int, model: str, extra: dict[str, Any]) -> dict[str, float]:
    """Sends every prompt at once and waits for all: ``time_s``, ``output_tokens`` (as the server counts them), ``out_tok_s``.

    Raises ``RuntimeError`` if a request failed or an answer is shorter than ``output_len`` tokens.
    """
    answers: list[dict[str, Any] | Exception] = [RuntimeError("no answer")] * len(prompts)

    def ask(i: int) -> None:
        body = {"model": model, "prompt": prompts[i], "max_tokens": output_len, "temperature": 0, "ignore_eos": True, **extra}
        try:
            answers[i] = post(port, "/v1/completions", body)
        except Exception as error:
            answers[i] = error

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time_s = time.perf_counter() - started
    total = 0
    for answer in answers:
        if isinstance(answer, Exception):
            raise RuntimeError(f"a request failed: {answer}") from answer
        tokens = int(answer["usage"]["completion_tokens"])
        if tokens != output_len:
            raise RuntimeError(f"asked for {output_len} tokens, got {tokens}")
        total += tokens
    return {"time_s": time_s, "output_tokens": total, "out_tok_s": total / time_s}
