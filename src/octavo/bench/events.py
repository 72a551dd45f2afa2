"""Server-sent events of the OpenAI API: from bytes to events, and from events to what they say about a request.

How many tokens an event holds is not said: servers put several into one, none into another (half of a character, a role). The count is
therefore the server's ``usage``; without it, an answer that ended for its length has the length that was asked for; failing
that, events are counted. ``RequestRecord.counted_by`` says which.
"""

from __future__ import annotations

import json
from typing import Any

from octavo.bench.http import HTTPFault, what_it_said
from octavo.bench.records import RequestRecord

_SPEAKING = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


class EventSplitter:
    """Cuts a stream of bytes into the ``data`` of its events (WHATWG HTML, section 9.2); comments and other fields are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completed."""
        text = self._rest + piece
        if b"\r" in text:
            held = b"\r" if text.endswith(b"\r") else b""  # its other half may be in the next piece
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *lines, self._rest = text.split(b"\n")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def close(self) -> list[bytes]:
        """The event that lacked nothing but its empty line."""
        events = self.push(b"\n\n")
        self._rest, self._data = b"", []
        return events


class AnswerReader:
    """Fills a record from the events of its answer. ``output_len``: the tokens that were asked for, per branch."""

    def __init__(self, record: RequestRecord, output_len: int) -> None:
        self._record = record
        self._output_len = output_len
        self._usages: list[dict[str, Any]] = []
        self._reasons: dict[int, str] = {}
        self._num_events = 0
        self.done = False

    def take(self, moment_s: float, data: bytes) -> None:
        """Raises ``HTTPFault`` if the event is an error, or nothing that is known."""
        if data.strip() == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise HTTPFault("an event of the stream is not JSON") from None
        if not isinstance(event, dict):
            raise HTTPFault("an event of the stream is not an object")
        if event.get("error"):
            raise HTTPFault(f"the stream said: {what_it_said(data)}")
        if isinstance(event.get("usage"), dict):
            self._usages.append(event["usage"])
        for choice in event.get("choices") or ():
            index = choice.get("index") or 0
            if _has_arrived(choice):
                arrivals = self._record.arrivals
                while len(arrivals) <= index:
                    arrivals.append([])
                self._num_events += 1
                if not arrivals[index] or arrivals[index][-1] < moment_s:  # what came in one piece came at once
                    arrivals[index].append(moment_s)
            if choice.get("finish_reason"):
                self._reasons[index] = choice["finish_reason"]

    def finish(self) -> None:
        """After the last event. Raises ``HTTPFault`` if the answer is not whole, or is empty."""
        record = self._record
        branches = [moments for moments in record.arrivals if moments]
        if not self.done and not self._reasons:
            raise HTTPFault("the stream ended before the answer did")
        if not branches:
            raise HTTPFault("the answer has no tokens")
        usage = self._usages[-1] if self._usages else {}
        if isinstance(usage.get("prompt_tokens"), int):
            record.prompt_tokens = usage["prompt_tokens"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if isinstance(cached, int):
            record.cached_tokens = cached
        each = self._usages if len(self._usages) == len(self._reasons) else [usage]  # some tell each branch's own as it ends
        counts = [count for one in each if isinstance(count := one.get("completion_tokens"), int) and count > 0]
        if counts:
            record.output_tokens, record.counted_by = sum(counts), "usage"
        elif len(self._reasons) == len(branches) and set(self._reasons.values()) == {"length"}:
            record.output_tokens, record.counted_by = self._output_len * len(branches), "length"
        else:
            record.output_tokens, record.counted_by = self._num_events, "events"


def _has_arrived(choice: dict[str, Any]) -> bool:
    """Whether the event brought something of an answer: text or tokens, even if they make no character yet; not a role, not an end."""
    if choice.get("token_ids") or choice.get("text"):
        return True
    delta = choice.get("delta")
    if isinstance(delta, dict):
        if any(delta.get(name) for name in _SPEAKING):
            return True
        return "content" in delta and "role" not in delta and not choice.get("finish_reason")
    return "text" in choice and not choice.get("finish_reason")
