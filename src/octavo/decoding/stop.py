"""Stop strings: found in text that arrives piece by piece, without ever showing part of one.

A piece is passed on at once, except for a tail that could still become a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy


class StopStringMatcher:
    """Feeds on a branch's text. ``include`` keeps the stop string itself in the output.

    Text given to ``hold`` is not searched, but a stop string may begin in it.
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def fork(self) -> StopStringMatcher:
        """Another one at the same place of the same text."""
        return copy(self)

    def hold(self, text: str) -> str:
        """Text in which no stop string may end yet (``min_tokens``). Returns what is certain."""
        return self._keep(self._held + text) if self._stops else text

    def push(self, text: str) -> tuple[str, str | None]:
        """Returns the text that is certain, and the stop string if one is complete now.

        Of several in the same text, the one that begins first wins, then the one listed first.
        """
        if not self._stops:
            return text, None
        old = len(self._held)
        text = self._held + text
        self._held = ""
        found = [(position, i) for i, stop in enumerate(self._stops) if (position := text.find(stop, max(0, old - len(stop) + 1))) >= 0]
        if found:
            position, i = min(found)
            end = position + (len(self._stops[i]) if self._include else 0)
            return text[:end], self._stops[i]
        return self._keep(text), None

    def flush(self) -> str:
        """What is held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _keep(self, text: str) -> str:
        """Holds back the tail that may become a stop string, and returns the rest."""
        length = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The longest tail of ``text`` that is a beginning of ``stop``, shorter than it."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
