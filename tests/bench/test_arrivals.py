"""Arrival gaps follow the distribution that was asked for: a Kolmogorov-Smirnov distance, mean and deviation, over 4,000 of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from octavo.bench.arrivals import arrival_times

COUNT = 4001


def gaps(rate: float, burstiness: float, seed: int = 5) -> np.ndarray:
    times = arrival_times(COUNT, rate, burstiness, seed)
    assert times == sorted(times)
    assert times[0] == 0.0
    return np.diff(times)


@pytest.mark.parametrize("rate", [0.5, 8.0, 1000.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    found = np.sort(gaps(rate, 1.0))
    expected = 1 - np.exp(-rate * found)
    steps = np.arange(len(found) + 1) / len(found)
    distance = max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))
    assert distance < 1.95 / math.sqrt(len(found))  # a chance of one in a thousand, and the seed is fixed


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_mean_and_deviation(burstiness: float) -> None:
    found = gaps(10.0, burstiness)
    assert found.mean() == pytest.approx(0.1, rel=0.1)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)


def test_gaps_do_not_remember() -> None:
    found = gaps(3.0, 0.5)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.06


def test_counts_in_windows_are_poisson() -> None:
    """Variance of the counts equals their mean; not so for bursts or for a steady beat."""
    dispersion = {}
    for burstiness in (0.25, 1.0, 4.0):
        times = np.array(arrival_times(COUNT, 10.0, burstiness, 1))
        counts = np.histogram(times, bins=np.arange(0, int(times[-1])))[0]
        dispersion[burstiness] = counts.var() / counts.mean()
    assert dispersion[1.0] == pytest.approx(1.0, abs=0.25)
    assert dispersion[0.25] > 2 > 0.6 > dispersion[4.0]


def test_seeds_and_limits() -> None:
    assert arrival_times(9, 2.0, 1.0, 3) == arrival_times(9, 2.0, 1.0, 3)
    assert arrival_times(9, 2.0, 1.0, 3) != arrival_times(9, 2.0, 1.0, 4)
    assert arrival_times(9, 2.0, 1.0, 3) == arrival_times(20, 2.0, 1.0, 3)[:9]
    assert arrival_times(4, math.inf, 1.0, 0) == [0.0] * 4
    assert arrival_times(1, 2.0, 1.0, 0) == [0.0]
    halves = [b / a for a, b in itertools.pairwise([arrival_times(50, rate, 1.0, 7)[-1] for rate in (1.0, 0.5, 0.25)])]
    assert halves == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize(("rate", "burstiness"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, -2), (1, math.inf), (1, math.nan)])
def test_what_is_no_process(rate: float, burstiness: float) -> None:
    with pytest.raises(ValueError, match=r"request_rate|burstiness"):
        arrival_times(3, rate, burstiness, 0)
