"""Times of kernels as a decode runs them: captured, replayed, and never on data that an earlier call left in the cache."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from ssd.bench.machine import gpu_seconds

Call = Callable[[], Any]
LEAST_SECONDS = 0.05  # least measured time for a figure, unless REPLAYS ends it earlier
REPLAYS = (10, 200)  # least and most replays for a figure


def captured(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """All calls, in order, as one graph. Each runs once before the capture, because libraries choose their kernels at the
    first call."""
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
    """Median, least and most seconds of a call, from replays of one graph of all calls. reset: runs untimed before each."""
    reset()
    graph = captured(calls)
    times: list[float] = []
    while len(times) < REPLAYS[0] or (sum(times) < LEAST_SECONDS and len(times) < REPLAYS[1]):
        reset()
        torch.cuda.synchronize()
        times.append(gpu_seconds(graph.replay))
    return {name: of(times) / len(calls) for name, of in (("median", median), ("least", min), ("most", max))}


def rotation(bytes_a_call: int, least_calls: int = 1) -> int:
    """The number of calls, each on its own data, after which a replay finds none of its data in the cache."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(least_calls, 1 + 3 * cache // max(bytes_a_call, 1)) if bytes_a_call < 3 * cache else least_calls


def launch_seconds() -> float:
    """The floor of a small kernel: the time of one more node in a graph, which adds 1 to one number."""
    one = torch.zeros(1, device="cuda")
    return seconds_a_call([lambda: one.add_(1)] * 200)["median"]
