"""How a worker is spoken to: one JSON line in, ``{"row": …, "rep": …}``, one out: figures, or ``{"error": …}``.

Whatever else an engine prints on standard output goes to standard error. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Measure = Callable[[int], dict[str, float]]


def claim_stdout() -> TextIO:
    """The line to the parent; from now on file descriptor 1 is standard error. Call it before an engine is imported."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def settings() -> dict[str, Any]:
    chosen: dict[str, Any] = json.loads(sys.argv[1])
    return chosen


def serve(channel: TextIO, about: Mapping[str, Any], measures: Mapping[str, Measure]) -> None:
    """Says ``about`` once everything is loaded, then answers until standard input is closed."""
    _say(channel, about)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: Mapping[str, Any] = measures[request["row"]](request["rep"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(channel, answer)


def _say(channel: TextIO, answer: Mapping[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


def expect(counted: int, wanted: int, what: str = "output tokens") -> None:
    """Raises ``RuntimeError`` unless an engine did all that it was asked for."""
    if counted != wanted:
        raise RuntimeError(f"{counted} {what} instead of {wanted}")
