"""``TokenCounts``: how often each token has occurred in a sequence, kept up as it grows.

Penalties need them at every step; counting anew would cost time in proportion to the length. The counts are flat arrays in the order of
first occurrence, so that a step's kernel takes them as they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class TokenCounts:
    """``tokens[i]`` has occurred ``counts[i]`` times in the output; 0 for one of the prompt alone."""

    __slots__ = ("_places", "counts", "tokens")

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self.tokens = array("i", dict.fromkeys(prompt))
        self.counts = array("i", bytes(self.tokens.itemsize * len(self.tokens)))
        self._places = {token: place for place, token in enumerate(self.tokens)}

    def add(self, token: int) -> None:
        """One more of the output."""
        place = self._places.setdefault(token, len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(1)
        else:
            self.counts[place] += 1

    def fork(self) -> TokenCounts:
        child = object.__new__(TokenCounts)
        child.tokens = self.tokens[:]
        child.counts = self.counts[:]
        child._places = self._places.copy()
        return child
