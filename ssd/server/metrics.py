"""Figures for Prometheus, with vLLM's names where it has one, and the prefix `ssd:`.

A request's tokens and rounds are counted when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ssd.requests import Request
from ssd.server.async_engine import AsyncEngine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Figures:
    """A registry of its own. `count` belongs to an engine's `on_end`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"ssd:{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str) -> Histogram:
            return Histogram(f"ssd:{name}", help, buckets=SECONDS, registry=self.registry)

        self._ended = counter("requests_ended", "Ended requests by the reason.", "finished_reason")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of the prompts.")
        self._cached_tokens = counter("prefix_cache_hits", "Tokens of the prompts whose K/V were found in the prefix cache.")
        self._searched_tokens = counter(
            "prefix_cache_queries", "Tokens of the prompts that were looked up in the prefix cache."
        )
        self._tokens = counter("generation_tokens", "Generated tokens.")
        self._drafts = counter("spec_decode_num_drafts", "Rounds with draft tokens.")
        self._draft_tokens = counter("spec_decode_num_draft_tokens", "Draft tokens.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Accepted draft tokens.")
        self._accepted_at = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Accepted draft tokens by their position in the draft, from 0.",
            "position",
        )
        self._look_ups = counter(
            "cache_look_ups", "Outcomes looked up in the speculation cache, by their accepted count.", "accepted"
        )
        self._hits = counter("cache_hits", "Outcomes found in the speculation cache, by their accepted count.", "accepted")
        self._first_token = histogram("time_to_first_token_seconds", "Time from a request's arrival to its first token.")
        self._whole = histogram("e2e_request_latency_seconds", "Time from a request's arrival to its end.")

    def watch(self, engine: AsyncEngine) -> None:
        """Show the engine's present state."""
        scheduler = engine.engine.core.scheduler
        pages = scheduler.pages
        gauges = {
            "num_requests_running": ("Requests with a slot.", lambda: engine.running),
            "num_requests_waiting": ("Requests without a slot.", lambda: engine.waiting),
            "kv_pages": ("Pages of the K/V cache.", lambda: pages.capacity),
            "kv_pages_in_use": ("Pages of the K/V cache that requests hold.", lambda: pages.capacity - pages.available),
            "kv_pages_kept": ("Full pages that are kept for prompts to come, in use or not.", lambda: pages.kept),
            "degraded": ("1 after the draft has failed, else 0.", lambda: engine.state == "degraded"),
        }
        for name, (help, value) in gauges.items():
            Gauge(f"ssd:{name}", help, registry=self.registry).set_function(value)
        self.registry.register(
            _Counts(
                {
                    "num_preemptions": (
                        "Requests that gave their pages to older ones for a while.",
                        lambda: scheduler.preemptions,
                    ),
                    "prefix_cache_evictions": ("Kept pages that were dropped for new ones.", lambda: pages.evictions),
                }
            )
        )

    def count(self, request: Request) -> None:
        """Add a request that has ended."""
        stats, tokens = request.stats, len(request.token_ids)
        self._ended.labels(request.finish_reason or "aborted").inc()
        self._prompt_tokens.inc(len(request.prompt))
        if stats.cached_tokens is not None:
            self._searched_tokens.inc(len(request.prompt))
            self._cached_tokens.inc(stats.cached_tokens)
        self._tokens.inc(tokens)
        self._drafts.inc(sum(rounds for proposed, rounds in stats.lengths.items() if proposed))
        self._draft_tokens.inc(stats.proposed)
        self._accepted.inc(stats.accepted)
        for position in range(max(stats.counts, default=0)):
            rounds = sum(rounds for accepted, rounds in stats.counts.items() if accepted > position)
            self._accepted_at.labels(str(position)).inc(rounds)
        for accepted, (hits, look_ups) in stats.per_k.items():
            self._look_ups.labels(str(accepted)).inc(look_ups)
            self._hits.labels(str(accepted)).inc(hits)
        if tokens:
            self._first_token.observe(stats.first_token - stats.arrived)
        self._whole.observe(time.perf_counter() - stats.arrived)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Counts(Collector):
    """Counts that are kept elsewhere: by name, their help and value."""

    def __init__(self, counts: Mapping[str, tuple[str, Callable[[], int]]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for name, (help, value) in self._counts.items():
            yield CounterMetricFamily(f"ssd:{name}", help, value())
