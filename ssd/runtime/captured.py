"""Rounds as graphs: each lane is a stream of a device. A program is recorded when it comes back, and replayed from then on.

The host only begins programs, and is a round or two ahead of the device. Events between the streams join the lanes, and small tables
come back, copied after the program that wrote them. `Device` is all that this asks of a device: torch.cuda's is runtime/cuda.py, and
the tests have one that runs recorded programs in any order that streams and events allow.
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

Key = tuple[str, str, int, object]  # lane, name, slots, and what else a program depends on
BUCKETS = (1, 2, 4, 8, 16, 32)  # batch sizes that programs are recorded for; above these, the largest batch there is


class Event(Protocol):
    """A point of a stream."""

    def wait(self) -> None:
        """Block until the device has passed it."""

    def seconds(self) -> float:
        """When that was, on time.perf_counter's clock."""


class DeviceStream(Protocol):
    """A queue of a device: work runs in the order in which it was enqueued. Its events and graphs are its device's own."""

    def work(self) -> AbstractContextManager[None]:
        """Within it, ops are enqueued here."""

    def record(self) -> Event:
        """An event at the end of what has been enqueued by now."""

    def wait(self, event: Any) -> None:
        """Let whatever is enqueued from now on run after another stream's event."""

    def launch(self, graph: Any) -> None:
        """Enqueue a recorded program."""


class Device(Protocol):
    """Streams, graphs, and copies to and from the host."""

    def stream(self, lane: str) -> DeviceStream: ...

    def capture(self, stream: Any, program: Callable[[], Any]) -> tuple[Any, Any]:
        """Record a program without running it. Returns the graph, and the tables that the program returned: every launch writes them
        anew."""

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        """Record a part of a program that runs only if a flag is set when the device reaches it."""

    def download(self, table: Tensor) -> Tensor:
        """Enqueue a copy to the host; it is there once the stream has passed it."""

    def upload(self, table: Tensor, values: Tensor) -> None:
        """Enqueue a copy of the host's values, as they are now."""

    def synchronize(self, lanes: Iterable[str]) -> None:
        """Block until the devices of these lanes have done everything enqueued there, on their streams or beside them."""

    def free_bytes(self) -> int:
        """Bytes of its memory that are free now."""


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
    there: Event

    def tolist(self) -> list[Any]:
        self.there.wait()
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
        known = (lane, name, n, key)
        if known in self._run_once and known not in self._graphs:
            self._graphs[known] = self._record(stream, program)
        if known not in self._graphs:  # the first run is not recorded: it loads and allocates, which a recording must not
            self._run_once.add(known)
            return self._enqueue(lane, name, program, batch=n)
        graph, value = self._graphs[known]
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
        """Put it in the timeline, also if nobody asks when it ran."""
        self.trace.keep_later(lambda: run.span)
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._join()
        yield
        self._join()

    def _join(self) -> None:
        """Let whatever is enqueued on either lane from now on run after everything enqueued on both."""
        points = [(lane, stream.record()) for lane, stream in self._lanes.items()]
        for lane, stream in self._lanes.items():
            for other, point in points:
                if other != lane:
                    stream.wait(point)

    def on(self, lane: str) -> AbstractContextManager[None]:
        return self._lanes[lane].work()

    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        def copy() -> None:
            for there, here in tables:
                there.copy_(here, non_blocking=True)

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
        """Drop the graphs, which name the tables of the loop they were recorded in. The draft's lane is not used again: its device may be
        lost."""
        with suppress(RuntimeError):  # a lost target says so again at the next call
            self.settle()
        self._graphs.clear()
        self._run_once.clear()
        self._lanes.pop("draft", None)
