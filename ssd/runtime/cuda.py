"""The CUDA device of the captured executor: streams with priorities, graphs with their own memory pools, pinned copies.

A lane may be limited to a part of a GPU's multiprocessors. Its streams then belong to a green context. torch cannot create
green-context streams with a priority, so the extension does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ssd.errors import SsdError

PRIORITIES = {"target": -1, "draft": 0}  # stream priorities: the target goes first when both need the same multiprocessors


class Clock:
    """Converts the times of a device's events to time.perf_counter."""

    REACH = 10.0  # seconds between the base and an event, before the base moves

    def __init__(self) -> None:
        """Start a clock for the current device."""
        self._base = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._base.record()
        self._base.synchronize()
        self._base_time = time.perf_counter()

    def seconds(self, event: torch.cuda.Event) -> float:
        """The time of an event that has completed.

        Elapsed times are float32 milliseconds, so the base moves forward before they lose precision.
        """
        elapsed = self._base.elapsed_time(event) / 1e3
        if elapsed > self.REACH:
            self._base, self._base_time = event, self._base_time + elapsed
            return self._base_time
        return float(self._base_time + elapsed)


@cache
def _part(device: torch.device, multiprocessors: int) -> Any:
    """A green context of this size. It never ends, so all engines share it. Raises SsdError if the device cannot create one."""
    from ssd._C import GreenContext  # exists only in a build for CUDA

    try:
        return GreenContext(device.index, multiprocessors)
    except RuntimeError as error:
        raise SsdError(f"draft_sms is {multiprocessors}, and {device} cannot set that aside ({error}); leave it out.") from None


@dataclass
class CudaEvent:
    event: torch.cuda.Event
    clock: Clock

    def wait(self) -> None:
        self.event.synchronize()

    def seconds(self) -> float:
        return self.clock.seconds(self.event)


class CudaStream:
    """One lane's stream. clock: the device's clock. multiprocessors: how many of them the stream may use (None: all)."""

    def __init__(self, device: torch.device, clock: Clock, priority: int, multiprocessors: int | None) -> None:
        with torch.cuda.device(device):
            self.part = _part(device, multiprocessors) if multiprocessors is not None else None
            self.stream = self._new(device, priority)
            self.body = self._new(device, priority)  # captures the bodies of conditional nodes
            self.pool = torch.cuda.MemPool()
            self.body_pool = torch.cuda.MemPool()
        self._clock = clock

    def _new(self, device: torch.device, priority: int) -> torch.cuda.Stream:
        if self.part is not None:
            return torch.cuda.ExternalStream(self.part.stream(priority), device)  # type: ignore[no-untyped-call]
        return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]

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
    """The GPU of each lane; both lanes may be on one GPU. A lane's graphs never run at the same time, so they share the lane's
    memory pools. Two lanes share none. draft_sms: number of multiprocessors that the draft may use; the target may use all."""

    def __init__(self, devices: Mapping[str, torch.device], draft_sms: int | None) -> None:
        self._devices = devices
        self._multiprocessors = {"target": None, "draft": draft_sms}
        self._capturing: CudaStream | None = None
        self._failed: list[torch.cuda.CUDAGraph] = []  # graphs whose capture failed: the allocator may still refer to them
        self._clocks = {}
        for device in set(devices.values()):
            with torch.cuda.device(device):
                self._clocks[device] = Clock()

    def stream(self, lane: str) -> CudaStream:
        device = self._devices[lane]
        return CudaStream(device, self._clocks[device], PRIORITIES[lane], self._multiprocessors[lane])

    def capture(self, stream: CudaStream, program: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        device, pool = stream.stream.device, stream.pool.id
        recording: Any = torch.cuda.graph(graph, pool, stream.stream, "thread_local")  # type: ignore[arg-type]
        self._capturing = stream
        collects = gc.isenabled()
        gc.disable()  # freeing objects may call the driver, which invalidates a capture
        try:
            # The outer stream context restores the current stream if the capture fails.
            with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()), recording:
                value = program()
        except BaseException:
            self._failed.append(graph)
            with suppress(RuntimeError):  # without this call, nothing could be captured into this pool any more
                torch._C._cuda_endAllocateToPool(device.index, pool)
            raise
        finally:
            self._capturing = None
            if collects:
                gc.enable()
        return graph, value

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        stream = self._capturing
        if stream is None:
            # Warm-up, before the capture: run the body unconditionally, so that everything it needs is loaded. Hits are not
            # overwritten.
            program()
            return
        from ssd._C import Conditional  # exists only in a build for CUDA

        if flags.dtype != torch.uint8:
            flags = flags != 0
        node = Conditional(stream.stream.cuda_stream, flags.data_ptr(), flags.numel(), stream.body.cuda_stream, stream.part)
        try:
            # The body's memory must live as long as the graph. The body is captured on another stream, so it needs a pool of
            # its own.
            with torch.cuda.stream(stream.body), torch.cuda.use_mem_pool(stream.body_pool):
                program()
        except BaseException:
            with suppress(RuntimeError):  # report the first error, not this one
                node.end()
            raise
        node.end()

    def download(self, table: Tensor) -> Tensor:
        copy = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        return copy.copy_(table, non_blocking=True)

    def upload(self, table: Tensor, values: Tensor) -> None:
        table.copy_(values.pin_memory(), non_blocking=True)

    def synchronize(self, lanes: Iterable[str]) -> None:
        for device in {self._devices[lane] for lane in lanes}:
            torch.cuda.synchronize(device)

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()  # memory that only torch's allocator holds counts as free
        return sum(torch.cuda.mem_get_info(device)[0] for device in set(self._devices.values()))
