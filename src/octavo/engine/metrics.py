"""What the engine counts, as Prometheus metrics in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

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


class EngineMetrics:
    """Gauges read the scheduler when they are scraped; counters and histograms are fed by the engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = registry = CollectorRegistry()
        kv = scheduler.kv

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"octavo_{name}", text, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"octavo_{name}", text, labels, registry=registry)

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
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.requests_finished = counter("requests_finished", "Requests that have ended, by their gravest reason", ("reason",))
        self.draft_tokens = counter("draft_tokens", "Tokens that prompt lookup drafted")
        self.accepted_draft_tokens = counter("accepted_draft_tokens", "Drafted tokens that were chosen")
        self.steps = counter("steps", "Steps run")
        self.step_seconds = counter("step_seconds", "Time spent in steps")
        self.computed_tokens = counter("computed_tokens", "Tokens whose KV was computed")
        self.branch_block_steps = counter(
            "branch_block_steps", "KV blocks that branches of one request refer to, summed over branches and steps"
        )
        self.saved_block_steps = counter("saved_block_steps", "Those of octavo_branch_block_steps that sharing between the branches saved")
        self.time_to_first_token = histogram("time_to_first_token", "From arrival to the first token")
        self.inter_token_latency = histogram("inter_token_latency", "From one token of a branch to its next")
        self.request_latency = histogram("request_latency", "From arrival to the end")
