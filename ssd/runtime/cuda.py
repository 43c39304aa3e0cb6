"""What the captured executor asks of a device, from torch.cuda: streams with priorities, graphs with memory of their own, pinned copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRIORITIES = {"target": -1, "draft": 0}  # of the streams: where both want the same multiprocessors, the target has them


class Clock:
    """Relates events of a device to time.perf_counter."""

    REACH = 10.0  # seconds

    def __init__(self) -> None:
        self._base = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._base.record()
        self._base.synchronize()
        self._at = time.perf_counter()

    def seconds(self, event: torch.cuda.Event) -> float:
        """The event has happened. Elapsed times are float32 milliseconds, so the base moves on before they get coarse."""
        elapsed = self._base.elapsed_time(event) / 1e3
        if elapsed > self.REACH:
            self._base, self._at = event, self._at + elapsed
            return self._at
        return float(self._at + elapsed)


@dataclass
class CudaEvent:
    event: torch.cuda.Event
    clock: Clock

    def wait(self) -> None:
        self.event.synchronize()

    def seconds(self) -> float:
        return self.clock.seconds(self.event)


class CudaStream:
    def __init__(self, device: torch.device, priority: int, clock: Clock) -> None:
        self.stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
        self.body_pool = torch.cuda.MemPool()
        self.body = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # of a part under a condition, while recording
        self.pool = torch.cuda.MemPool()
        self._clock = clock

    @contextmanager
    def work(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield

    def record(self) -> CudaEvent:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return CudaEvent(event, self._clock)

    def wait(self, event: CudaEvent) -> None:
        self.stream.wait_event(event.event)

    def launch(self, graph: torch.cuda.CUDAGraph) -> None:
        with torch.cuda.stream(self.stream):
            graph.replay()


class CudaDevice:
    """One GPU. The graphs of each lane share one memory pool: they never run at the same time. Lanes share none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._clock = Clock()
        self._capturing: CudaStream | None = None

    def stream(self, lane: str) -> CudaStream:
        with torch.cuda.device(self._device):
            return CudaStream(self._device, PRIORITIES[lane], self._clock)

    def capture(self, stream: CudaStream, program: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        self._capturing = stream
        try:
            # The outer one puts the current stream back if the recording fails.
            pool: Any = stream.pool.id
            recording = torch.cuda.graph(graph, pool, stream.stream, "thread_local")
            with torch.cuda.stream(torch.cuda.current_stream(self._device)), recording:
                value = program()
        finally:
            self._capturing = None
        return graph, value

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        stream = self._capturing
        if stream is None:
            # A first run, before it is recorded: all of it, so that all it needs is loaded. A hit keeps what it has.
            program()
            return
        from ssd._C import Conditional  # only a build for CUDA has it

        flags = flags.to(torch.uint8)
        node = Conditional(stream.stream.cuda_stream, flags.data_ptr(), flags.numel(), stream.body.cuda_stream)
        try:
            # What the body allocates must outlive it like the graph's own memory; its stream is another one, so a pool is named.
            with torch.cuda.stream(stream.body), torch.cuda.use_mem_pool(stream.body_pool):
                program()
        except BaseException:
            with suppress(RuntimeError):  # the first error is the one to tell
                node.end()
            raise
        node.end()

    def download(self, table: Tensor) -> Tensor:
        copy = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        return copy.copy_(table, non_blocking=True)

    def upload(self, table: Tensor, values: Tensor) -> None:
        table.copy_(values.pin_memory(), non_blocking=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)
