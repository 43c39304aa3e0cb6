"""Timing kernels as a decode runs them: captured once, replayed, and never on data that the last call left in the cache."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from machine import gpu_seconds

Call = Callable[[], Any]
LEAST_SECONDS = 0.05  # of measuring, for a figure
REPLAYS = (10, 200)  # at least and at most


def captured(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """All calls, in order, as one graph. They have run once before: libraries choose their kernels then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def seconds_a_call(calls: list[Call], reset: Call = lambda: None) -> dict[str, float]:
    """Median, least and largest time of a call, from replays of a graph of them all. reset: runs before each replay, not timed."""
    reset()
    graph = captured(calls)
    times: list[float] = []
    while len(times) < REPLAYS[0] or (sum(times) < LEAST_SECONDS and len(times) < REPLAYS[1]):
        reset()
        torch.cuda.synchronize()
        times.append(gpu_seconds(graph.replay))
    return {name: of(times) / len(calls) for name, of in (("median", median), ("least", min), ("most", max))}


def rotation(bytes_a_call: int, least_calls: int = 1) -> int:
    """How many calls, each on data of its own, it takes for none to find its data in the cache."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(least_calls, 1 + 3 * cache // max(bytes_a_call, 1)) if bytes_a_call < 3 * cache else least_calls


def launch_seconds() -> float:
    """The floor of a small kernel: one more node in a graph, doing next to nothing."""
    one = torch.zeros(1, device="cuda")
    return seconds_a_call([lambda: one.add_(1)] * 200)["median"]
