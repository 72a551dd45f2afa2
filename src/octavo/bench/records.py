"""``RequestRecord``: one request as it was seen from outside, and the four latencies that follow from it.

TTFT: from sending to the first token. E2EL: from sending to the last token. TPOT: (last - first) / (tokens - 1), by count. ITL: each gap
between tokens that arrived one after the other; tokens that arrive together are one arrival, as they are for who reads along.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """Moments are seconds on the run's own clock. ``arrivals[b]``: when something of branch b arrived."""

    sent_s: float
    arrivals: list[list[float]] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Of all branches."""
    cached_tokens: int | None = None
    """Prompt tokens that came from a prefix cache; ``None`` where that is not told."""
    error: str | None = None
    """What went wrong, in words that are the same for the same fault."""
    counted_by: str = "engine"
    """Who counted the output tokens: the engine itself, a server's ``usage``, the length that was asked for, or events."""

    @property
    def ok(self) -> bool:
        return self.error is None and any(self.arrivals)

    @property
    def first_s(self) -> float:
        return min(moments[0] for moments in self.arrivals if moments)

    @property
    def last_s(self) -> float:
        return max(moments[-1] for moments in self.arrivals if moments)

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def e2el_s(self) -> float:
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """``None`` for outputs of one token. Branches generate side by side: each has its share of the tokens."""
        branches = sum(bool(moments) for moments in self.arrivals)
        steps = self.output_tokens / branches - 1
        return (self.last_s - self.first_s) / steps if steps > 0 else None

    def gaps(self) -> list[tuple[float, float]]:
        """(moment, next moment) of all arrivals that follow one another in a branch."""
        return [pair for moments in self.arrivals for pair in itertools.pairwise(moments)]

    @property
    def itl_s(self) -> list[float]:
        return [later - earlier for earlier, later in self.gaps()]
