"""Conversations from a file: the prompts that people wrote, and how long the answers were.

Reads a JSON list, or one JSON object a line. An entry is ShareGPT's ``{"conversations": [{"from": "human", "value": …}, …]}`` (its
first exchange), a chat's ``{"messages": [{"role": "user", "content": …}, …]}``, Alpaca's ``{"instruction", "input", "output"}``, or
plainly ``{"prompt", "completion" or "output"}``. An ``output_len`` in tokens goes before the answer's own length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Exchange:
    """``answer`` is what was said then: only its length matters, and not even that if ``output_len`` is there."""

    prompt: str
    answer: str
    output_len: int | None = None


def read_exchanges(path: Path) -> list[Exchange]:
    """Those entries of the file that have a prompt and an answer. Raises ``ValueError`` if there is none, ``OSError``."""
    exchanges = [found for entry in _entries(path) if (found := _exchange(entry)) is not None]
    if not exchanges:
        raise ValueError(f"{path} has no exchange in it: expected ShareGPT, Alpaca, messages, or prompt and completion")
    return exchanges


def _entries(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


_ASKING, _ANSWERING = {"human", "user"}, {"gpt", "chatgpt", "bing", "bard", "assistant", "model"}


def _exchange(entry: Any) -> Exchange | None:
    if not isinstance(entry, dict):
        return None
    turns = entry.get("conversations") or entry.get("messages")
    if isinstance(turns, list):
        said = [(t.get("from") or t.get("role"), t.get("value") or t.get("content")) for t in turns if isinstance(t, dict)]
        while said and said[0][0] not in _ASKING:
            said.pop(0)
        if len(said) < 2 or said[1][0] not in _ANSWERING:
            return None
        prompt, answer = said[0][1], said[1][1]
    elif "instruction" in entry:
        prompt = "\n\n".join(str(entry[k]) for k in ("instruction", "input") if entry.get(k))
        answer = entry.get("output")
    else:
        prompt = entry.get("prompt")
        answer = entry.get("completion") or entry.get("output") or ""
    output_len = entry.get("output_len")
    if not isinstance(output_len, int) or output_len < 1:
        output_len = None
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(answer, str) or not (answer or output_len):
        return None
    return Exchange(prompt, answer, output_len)
