"""How long prompts and outputs are: fixed, or spread like those of ShareGPT and Alpaca.

The means are those of the traces in the PagedAttention paper (Kwon et al., SOSP 2023, figure 11: ShareGPT 161 in, 338 out; Alpaca 19 in,
58 out). Their shape, many short ones and a long tail, is a log-normal here, cut off where the traces end; its location is solved
for so that the mean *after* cutting and rounding is the paper's.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

_GRID = [NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)]


@dataclass(frozen=True)
class LogNormal:
    """Whole numbers from ``least`` to ``most`` with mean ``mean``; ``sigma`` is the deviation of the logarithm."""

    mean: float
    sigma: float
    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        return self._value(_location(self), rng.gauss(0.0, 1.0))

    def _value(self, location: float, z: float) -> int:
        return min(self.most, max(self.least, round(math.exp(location + self.sigma * z))))


@cache
def _location(distribution: LogNormal) -> float:
    """The mean of the logarithm that gives ``mean``: it grows with it, so halving finds it."""
    low, high = math.log(distribution.least) - 6.0, math.log(distribution.most) + 6.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = math.fsum(distribution._value(middle, z) for z in _GRID) / len(_GRID)
        low, high = (middle, high) if mean < distribution.mean else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Trace:
    """Prompt and output lengths, drawn independently."""

    input: LogNormal
    output: LogNormal


TRACES = {
    "sharegpt": Trace(LogNormal(161, 1.1, 4, 2048), LogNormal(338, 0.9, 4, 2048)),
    "alpaca": Trace(LogNormal(19, 0.5, 4, 256), LogNormal(58, 0.8, 4, 1024)),
}
