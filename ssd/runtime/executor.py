"""How the programs of a round run: each on its lane, the target's or the draft's, in the order in which they were begun there.

A program may read tables that a program of the other lane wrote only if it is begun `after` that one. The loops (ssd/decoding) say no
more than that about time. An executor says what a lane is: for `EagerExecutor` the caller's thread, and a thread of the draft's own
for programs that are started beside it; for `CapturedExecutor` (runtime/captured.py) two streams of a device.
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
    """A program that was begun."""

    @property
    def span(self) -> Span:
        """When it ran; known once `wait` has returned."""

    @property
    def value(self) -> Any:
        """The tables that the program returned, to be read after it on its lane."""

    def wait(self) -> None:
        """Block until it is over; raise what it raised."""


class Reading(Protocol):
    """A table on its way to the host."""

    def tolist(self) -> list[Any]:
        """Its rows, as they were at that point of the lane; blocks until they are here."""


@dataclass
class _Done:
    """A run that was over as soon as it was begun."""

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
    """The cost of recording programs: seconds, and bytes of the device's memory."""

    programs: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Executor(ABC):
    """Runs the programs of the loops. trace: where the phases of a round are measured."""

    kind: str  # "eager" or "graphs"
    in_flight = 0  # rounds that may be in flight while the host reads the reports of an earlier one

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.recorded = Recorded()

    @property
    def prepared(self) -> Sequence[int]:
        """The batch sizes whose programs are warmed up before there are requests."""
        return ()

    def batch(self, n: int) -> int:
        """How many slots a round of n covers, at least n."""
        return n

    @abstractmethod
    def run(
        self, lane: str, name: str, program: Callable[[], Any], n: int, key: object = None, after: Sequence[Run] = ()
    ) -> Run:
        """Run a program of n slots on a lane, after everything begun on that lane and after the runs in `after`, of the other lane.

        key: the rest of what the program depends on. For the same name, n and key it is the same sequence of ops on the same tables.
        """

    @abstractmethod
    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        """The same on the draft's lane, beside the caller, who goes on at once."""

    @abstractmethod
    def once(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Run:
        """Run a program that will not come back, such as a prompt's prefill. details: of its span."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """For changes to tables that both lanes read: programs begun within run after everything begun on either lane, and before
        everything begun later."""

    @abstractmethod
    def on(self, lane: str) -> AbstractContextManager[None]:
        """Ops called within run on this lane, for work too small to be a program. To be used `alone`."""

    @abstractmethod
    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        """Copy tables of n slots to the other lane's device, after everything begun on this lane. tables: pairs (there, here)."""

    @abstractmethod
    def read(self, lane: str, table: Tensor) -> Reading:
        """Copy a small table to the host at this point of the lane. Read it before `in_flight` + 1 more rounds are begun."""

    @abstractmethod
    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        """Overwrite a table with the host's values at this point of the lane."""

    @abstractmethod
    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        """Within a program: run another one if any flag is set."""

    @abstractmethod
    def settle(self) -> None:
        """Block until everything begun has ended, in whatever way."""

    @abstractmethod
    def close(self) -> None:
        """Release the threads and graphs of the loop in use. Another loop may then use `run`, but not `start`."""


class EagerExecutor(Executor):
    """Runs programs as they are called, on the caller's thread; programs that are started run on a thread of the draft's own, with
    `draft_threads` intra-op threads."""

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
        return self._run(lane, name, program, batch=n)

    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        self.settle()
        self._started = self._worker.submit(lambda: self._run("draft", name, program, batch=n))
        return _Started(self._started)

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
            for there, here in tables:
                there.copy_(here)

        return self._run(lane, "send", copy, batch=n)

    def read(self, lane: str, table: Tensor) -> Reading:
        return table

    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        if lane == "draft":
            self.settle()
        table.copy_(values)

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        if bool(flags.any()):
            program()

    def settle(self) -> None:
        if self._started is not None:
            wait([self._started])

    def close(self) -> None:
        self._worker.close()
