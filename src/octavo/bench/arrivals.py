"""When requests arrive: gaps drawn from a gamma distribution, of which the exponential one (a Poisson process) is the special case.

The mean gap is 1 / ``request_rate``; ``burstiness`` is the gamma's shape, so the gaps' coefficient of variation is 1 / √burstiness: 1 gives
Poisson arrivals, less comes in bursts, more is steadier. An infinite rate sends everything at once.
"""

from __future__ import annotations

import itertools
import math
import random


def arrival_times(count: int, request_rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start for each of ``count`` requests, ascending, the first at 0. Raises ``ValueError``."""
    if not request_rate > 0:
        raise ValueError(f"request_rate={request_rate} is invalid: must be a positive number of requests per second, or inf")
    if not burstiness > 0 or math.isinf(burstiness):
        raise ValueError(f"burstiness={burstiness} is invalid: must be a positive number (1 is a Poisson process)")
    if math.isinf(request_rate):
        return [0.0] * count
    draw = random.Random(f"arrivals/{seed}")
    gaps = (draw.gammavariate(burstiness, 1 / (request_rate * burstiness)) for _ in range(count - 1))
    return list(itertools.accumulate(gaps, initial=0.0))[:count]
