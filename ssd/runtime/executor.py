"""The executor of a round's programs. Each program runs on its lane, the target's or the draft's, in the order of the calls.

A program may read a table that the other lane wrote only if its `run` names the writing run in `after`. The loops
(ssd/decoding) state no other order. Each executor implements the lanes. `EagerExecutor` does it by the caller's thread, and by
a thread of the draft for programs that run beside it. `RecordedExecutor` (runtime/recorded.py) uses the same threads, with no
Python inside a program. `CapturedExecutor` (runtime/captured.py) uses two streams of a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ssd.runtime.trace import Span, Trace
from ssd.runtime.worker import Worker


class Run(Protocol):
    """A program that was started."""

    @property
    def span(self) -> Span:
        """The time in which it ran; blocks until it has ended."""

    @property
    def value(self) -> Any:
        """The tables that the program returned. Only a later program may read them."""

    def wait(self) -> None:
        """Block until the program has ended. Raises the program's error."""


class Reading(Protocol):
    """A table on its way to the host."""

    def tolist(self) -> list[Any]:
        """The rows, as they were at that point of the lane. Blocks until they are on the host."""


@dataclass
class _Done:
    """A run that has ended."""

    span: Span
    value: Any = None

    def wait(self) -> None:
        pass


@dataclass
class _Started:
    """A run on the draft's thread."""

    future: Future[_Done]

    @property
    def span(self) -> Span:
        return self.future.result().span

    @property
    def value(self) -> Any:
        return self.future.result().value

    def wait(self) -> None:
        self.future.result()


@dataclass
class Recorded:
    """Number of recorded programs, and the cost of recording them: seconds, and bytes of device memory."""

    programs: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Executor(ABC):
    """Runs the programs of the loops. trace: takes the times of a round's phases."""

    kind: str  # "eager", "recorded", "paced" or "graphs"
    in_flight = 0  # rounds that may be in flight while the host reads the reports of an earlier one

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.recorded = Recorded()

    @property
    def prepared(self) -> Sequence[int]:
        """The batch sizes whose programs are warmed up before the first request."""
        return ()

    def batch(self, n: int) -> int:
        """The number of slots that a round of n slots covers, at least n."""
        return n

    @abstractmethod
    def run(
        self, lane: str, name: str, program: Callable[[], Any], n: int, key: object = None, after: Sequence[Run] = ()
    ) -> Run:
        """Run a program of n slots on a lane, after all earlier work of this lane and the other lane's runs in `after`.

        key: tells programs with the same name and n apart. For the same name, n and key, a program must be the same sequence of
        ops on the same tables.
        """

    @abstractmethod
    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        """Run a program on the draft's lane, beside the caller: returns at once."""

    @abstractmethod
    def once(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Run:
        """Run a program that will not be repeated, such as a prompt's prefill. details: for its span."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """A context for changes to tables that both lanes read.

        Programs started inside run after everything started before on either lane, and before everything started later.
        """

    @abstractmethod
    def on(self, lane: str) -> AbstractContextManager[None]:
        """A context for work too small to be a program: ops called inside run on this lane. Only inside `alone`."""

    @abstractmethod
    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        """Copy tables of n slots to the other lane's device, after everything started on this lane.

        tables: pairs (destination, source).
        """

    @abstractmethod
    def read(self, lane: str, table: Tensor) -> Reading:
        """Copy a small table to the host at this point of the lane. Read it before `in_flight` + 1 more rounds are started."""

    @abstractmethod
    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        """Overwrite a table with the host's values at this point of the lane."""

    @abstractmethod
    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        """Inside a program: run another program if any flag is set."""

    @abstractmethod
    def settle(self) -> None:
        """Block until everything started has ended, with or without an error."""

    @abstractmethod
    def close(self) -> None:
        """Release the threads and graphs of the loop in use. Another loop may then use `run`, but not `start`."""


class EagerExecutor(Executor):
    """Runs programs at once, on the caller's thread. Programs given to `start` run on the draft's thread.

    draft_threads: number of intra-op threads of the draft's thread.
    """

    kind = "eager"

    def __init__(self, trace: Trace, draft_threads: int = 1) -> None:
        super().__init__(trace)
        self._worker = Worker(draft_threads)
        self._started: Future[_Done] | None = None

    def run(
        self, lane: str, name: str, program: Callable[[], Any], n: int, key: object = None, after: Sequence[Run] = ()
    ) -> Run:
        if lane == "draft":
            self.settle()
        return self._run(lane, name, self._prepare(lane, name, program, n, key), batch=n)

    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        self.settle()
        prepared = self._prepare("draft", name, program, n, key)
        self._started = self._worker.submit(lambda: self._run("draft", name, prepared, batch=n))
        return _Started(self._started)

    def _prepare(self, lane: str, name: str, program: Callable[[], Any], n: int, key: object) -> Callable[[], Any]:
        """The function to call for this program. For lane, name, n and key see `run`."""
        return program

    def _run(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> _Done:
        with self.trace.span(lane, name, **details) as span:
            value = program()
        return _Done(span, value)

    def once(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Run:
        if lane == "draft":
            self.settle()
        return self._run(lane, name, program, **details)

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.settle()
        yield

    def on(self, lane: str) -> AbstractContextManager[None]:
        return nullcontext()

    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        def copy() -> None:
            for destination, source in tables:
                destination.copy_(source)

        return self._run(lane, "send", copy, batch=n)

    def read(self, lane: str, table: Tensor) -> Reading:
        return table

    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        if lane == "draft":
            self.settle()
        table.copy_(values)

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        if any(flags.tolist()):
            program()

    def settle(self) -> None:
        if self._started is not None:
            wait([self._started])

    def close(self) -> None:
        self._worker.close()
