"""Rounds as graphs: each lane is a stream of a device. A program is recorded when it runs for the second time, and then
replayed.

The host only enqueues programs, and is one or two rounds ahead of the device. Events order the two streams. Small tables are
copied to the host after the program that wrote them. `Device` is the whole interface to a device: runtime/cuda.py has the one
for torch.cuda, and the tests have one that runs recorded programs in any order that streams and events allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from ssd.runtime.executor import Executor, Reading, Run
from ssd.runtime.trace import LANES, Span, Trace

Key = tuple[str, str, int, object]  # lane, name, slots, and the caller's key
BUCKETS = (1, 2, 4, 8, 16, 32)  # batch sizes that programs are recorded for, besides the largest batch


class Event(Protocol):
    """A point in a stream."""

    def wait(self) -> None:
        """Block until the device has passed it."""

    def seconds(self) -> float:
        """The time at which the device passed it, on time.perf_counter's clock."""


class DeviceStream(Protocol):
    """A queue of a device: work runs in the order in which it was enqueued."""

    def work(self) -> AbstractContextManager[None]:
        """A context: ops called inside are enqueued on this stream."""

    def record(self) -> Event:
        """An event after all work that has been enqueued so far."""

    def wait(self, event: Any) -> None:
        """Make all work that is enqueued from now on wait for an event of another stream."""

    def launch(self, graph: Any) -> None:
        """Enqueue a recorded program."""


class Device(Protocol):
    """Streams, graphs, and copies to and from the host."""

    def stream(self, lane: str) -> DeviceStream: ...

    def capture(self, stream: Any, program: Callable[[], Any]) -> tuple[Any, Any]:
        """Record a program without running it.

        Returns the graph, and the tables that the program returned; every launch overwrites them.
        """

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        """Record a part of a program that the device runs only if a flag is set at that point."""

    def download(self, table: Tensor) -> Tensor:
        """Enqueue a copy to the host. The copy is valid once the stream has passed this point."""

    def upload(self, table: Tensor, values: Tensor) -> None:
        """Enqueue a copy of the host's current values to the table."""

    def synchronize(self, lanes: Iterable[str]) -> None:
        """Block until the devices of these lanes have done all their work, on these streams and on any other."""

    def free_bytes(self) -> int:
        """Bytes of device memory that are free now."""


@dataclass
class _Launched:
    """A run on a stream."""

    lane: str
    name: str
    began: Event
    ended: Event
    value: Any
    trace: Trace
    details: dict[str, Any]

    def wait(self) -> None:
        self.ended.wait()

    @cached_property
    def span(self) -> Span:
        self.wait()
        span = Span(self.lane, self.name, self.began.seconds(), self.ended.seconds(), self.details)
        self.trace.keep(span)
        return span


@dataclass
class _Copied:
    """A table on its way to the host."""

    copy: Tensor
    arrived: Event

    def tolist(self) -> list[Any]:
        self.arrived.wait()
        return self.copy.tolist()


class CapturedExecutor(Executor):
    """Runs programs as graphs, on two streams of a device. largest: the largest batch."""

    kind = "graphs"
    in_flight = 2

    def __init__(self, trace: Trace, device: Device, largest: int) -> None:
        super().__init__(trace)
        self._device = device
        self._largest = largest
        self._lanes = {lane: device.stream(lane) for lane in LANES}
        self._run_once: set[Key] = set()
        self._graphs: dict[Key, tuple[Any, Any]] = {}

    @property
    def prepared(self) -> Sequence[int]:
        return [*(b for b in BUCKETS if b < self._largest), self._largest]

    def batch(self, n: int) -> int:
        return min(b for b in self.prepared if n <= b)

    def run(
        self, lane: str, name: str, program: Callable[[], Any], n: int, key: object = None, after: Sequence[Run] = ()
    ) -> Run:
        stream = self._lanes[lane]
        for run in after:
            assert isinstance(run, _Launched)
            stream.wait(run.ended)
        graph_key = (lane, name, n, key)
        if graph_key in self._run_once and graph_key not in self._graphs:
            self._graphs[graph_key] = self._record(stream, program)
        if graph_key not in self._graphs:  # warm up: the first run may load kernels and allocate, a recording must not
            self._run_once.add(graph_key)
            return self._enqueue(lane, name, program, batch=n)
        graph, value = self._graphs[graph_key]
        began = stream.record()
        with self.trace.named(f"{lane}: {name}"):
            stream.launch(graph)
        return _Launched(lane, name, began, stream.record(), value, self.trace, {"batch": n})

    def _enqueue(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> _Launched:
        stream = self._lanes[lane]
        began = stream.record()
        with stream.work(), self.trace.muted():
            value = program()
        return _Launched(lane, name, began, stream.record(), value, self.trace, details)

    def _record(self, stream: DeviceStream, program: Callable[[], Any]) -> tuple[Any, Any]:
        free, began = self._device.free_bytes(), time.perf_counter()
        with self.trace.muted():
            recorded = self._device.capture(stream, program)
        self.recorded.programs += 1
        self.recorded.seconds += time.perf_counter() - began
        self.recorded.bytes += max(0, free - self._device.free_bytes())
        return recorded

    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        return self.run("draft", name, program, n, key)

    def once(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Run:
        return self._shown(self._enqueue(lane, name, program, **details))

    def _shown(self, run: _Launched) -> _Launched:
        """Add a run to the timeline, even if nobody reads its span."""
        self.trace.keep_later(lambda: run.span)
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._join()
        yield
        self._join()

    def _join(self) -> None:
        """Make all work that is enqueued from now on, on either lane, wait for all work enqueued on both."""
        events = [(lane, stream.record()) for lane, stream in self._lanes.items()]
        for lane, stream in self._lanes.items():
            for other, event in events:
                if other != lane:
                    stream.wait(event)

    def on(self, lane: str) -> AbstractContextManager[None]:
        return self._lanes[lane].work()

    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        def copy() -> None:
            for destination, source in tables:
                destination.copy_(source, non_blocking=True)

        return self._shown(self._enqueue(lane, "send", copy, batch=n))

    def read(self, lane: str, table: Tensor) -> Reading:
        stream = self._lanes[lane]
        with stream.work():
            copy = self._device.download(table)
        return _Copied(copy, stream.record())

    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        with self._lanes[lane].work():
            self._device.upload(table, values)

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        self._device.when(flags, program)

    def settle(self) -> None:
        self._device.synchronize(self._lanes)

    def close(self) -> None:
        """Drop the graphs, which refer to the tables of their loop, and the draft's lane, whose device may be lost."""
        with suppress(RuntimeError):  # if the target's device is lost, the next call raises the error again
            self.settle()
        self._graphs.clear()
        self._run_once.clear()
        self._lanes.pop("draft", None)
