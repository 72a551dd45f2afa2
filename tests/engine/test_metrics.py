"""Tallies, which take no lock, are scraped like the Prometheus library's own counters and histograms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from octavo.engine.metrics import _LATENCY_BUCKETS_S, LatencyTally, Tally


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    def bound(labels: dict[str, str]) -> str:
        return labels.get("le", "")

    metrics: list[Metric] = list(registry.collect())
    return {(s.name, bound(s.labels)): s.value for m in metrics for s in m.samples if not s.name.endswith("_created")}


@given(st.lists(st.one_of(st.sampled_from(_LATENCY_BUCKETS_S), st.floats(0, 200))))
def test_a_tally_is_scraped_like_the_librarys_own(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally, latency = Tally("x", "text", ours), LatencyTally("y_seconds", "text", ours)
    counter, histogram = (
        Counter("x", "text", registry=theirs),
        Histogram("y_seconds", "text", buckets=_LATENCY_BUCKETS_S, registry=theirs),
    )
    for value in values:
        tally.value += value
        counter.inc(value)
        latency.observe(value)
        histogram.observe(value)
    assert samples(ours) == samples(theirs)
