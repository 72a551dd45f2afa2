"""What the engine counts, as Prometheus metrics in a registry of its own.

What changes with every token is kept in plain numbers and made into metrics when it is scraped: one thread alone writes them, and the
library's own counters take a lock each time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo.engine.scheduler import Scheduler

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class _SchedulerCounts(Collector):
    """What the scheduler and the KV cache count by themselves, read when it is scraped."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        kv = self._scheduler.kv
        for name, text, value in (
            ("kv_block_evictions", "Cached KV blocks given up for new ones", kv.pool.num_evictions),
            ("kv_block_copies", "KV blocks copied on write", kv.num_copies),
            ("preemptions", "Sequences that gave up their blocks", self._scheduler.num_preemptions),
        ):
            yield CounterMetricFamily(f"octavo_{name}", text, value=value)


class Tally(Collector):
    """A counter; ``value`` may be added to by one thread."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.value: float = 0
        self._name = name
        self._text = text
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self.value)


class LatencyTally(Collector):
    """A histogram of seconds, fed by one thread."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._counts = [0] * (len(_LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._name = name
        self._text = text
        registry.register(self)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_LATENCY_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        bounds = [*map(floatToGoString, _LATENCY_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum_s)


class EngineMetrics:
    """Gauges read the scheduler when they are scraped; counters, tallies and histograms are fed by the engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = registry = CollectorRegistry()
        kv = scheduler.kv

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"octavo_{name}", text, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"octavo_{name}", text, labels, registry=registry)

        def tally(name: str, text: str) -> Tally:
            return Tally(f"octavo_{name}", text, registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"octavo_{name}_seconds", text, buckets=_LATENCY_BUCKETS_S, registry=registry)

        gauge("requests_running", "Sequences that compute in the current step").set_function(lambda: len(scheduler.running))
        gauge("requests_waiting", "Sequences that wait for room").set_function(lambda: len(scheduler.waiting))
        gauge("kv_blocks", "KV blocks in the pool").set_function(lambda: kv.num_blocks)
        gauge("kv_blocks_in_use", "KV blocks that sequences refer to").set_function(lambda: kv.num_used_blocks)
        gauge("kv_blocks_cached", "KV blocks that can be found by their contents").set_function(lambda: kv.pool.num_cached)
        gauge("kv_blocks_saved", "KV blocks that sharing saves: as many more would be in use").set_function(lambda: kv.num_saved_blocks)
        registry.register(_SchedulerCounts(scheduler))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that were started")
        self.cached_prompt_tokens = counter("cached_prompt_tokens", "Prompt tokens whose KV came from the prefix cache")
        self.generation_tokens = tally("generation_tokens", "Tokens generated")
        self.requests_finished = counter("requests_finished", "Requests that have ended, by their gravest reason", ("reason",))
        self.draft_tokens = counter("draft_tokens", "Tokens that prompt lookup drafted")
        self.accepted_draft_tokens = counter("accepted_draft_tokens", "Drafted tokens that were chosen")
        self.steps = tally("steps", "Steps run")
        self.step_seconds = tally("step_seconds", "Time spent in steps")
        self.computed_tokens = tally("computed_tokens", "Tokens whose KV was computed")
        self.branch_block_steps = counter(
            "branch_block_steps", "KV blocks that branches of one request refer to, summed over branches and steps"
        )
        self.saved_block_steps = counter("saved_block_steps", "Those of octavo_branch_block_steps that sharing between the branches saved")
        self.time_to_first_token = histogram("time_to_first_token", "From arrival to the first token")
        self.inter_token_latency = LatencyTally("octavo_inter_token_latency_seconds", "From one token of a branch to its next", registry)
        self.request_latency = histogram("request_latency", "From arrival to the end")
