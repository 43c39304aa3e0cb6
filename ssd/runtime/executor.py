"""How the programs of a round are run: each on its lane, the target's or the draft's, in the order in which they were begun there.

A program may read what another lane's wrote only if it is begun `after` it. That is all that the loops (ssd/decoding) say of time;
what a lane is, is said here: for `EagerExecutor` the caller's thread, and one of the draft's own for what is started beside it; for
`CapturedExecutor` (runtime/captured.py) two streams of a device.

Paced, every forward lasts at least a given time, waiting off the memory bus: one machine then shows what the engine does when
each role has hardware of its own. Figures from it are always labelled paced.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ssd.runtime.trace import Span, Trace
from ssd.runtime.worker import Worker

Result = TypeVar("Result")


class Run(Protocol):
    """A program that was begun."""

    @property
    def span(self) -> Span:
        """When it ran; known once `wait` has returned."""

    @property
    def value(self) -> Any:
        """What the program returned: tables, to be read behind it on its lane."""

    def wait(self) -> None:
        """Return when it is over; raise what it raised."""


class Reading(Protocol):
    """A table on its way to the host."""

    def tolist(self) -> list[Any]:
        """Its rows, as they were at that point of the lane."""


@dataclass
class _Done:
    """A run that was over when it was begun."""

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
    """What recording programs has cost: seconds, and bytes of the device's memory."""

    programs: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Executor(ABC):
    """What the loops ask for. `trace` is where the phases of a round are measured."""

    kind: str  # "eager", "paced" or "graphs"
    in_flight = 0  # rounds that may be under way while the host reads what an earlier one left

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.recorded = Recorded()

    @property
    def prepared(self) -> Sequence[int]:
        """The batch sizes whose programs are to be run before there are requests."""
        return ()

    def batch(self, n: int) -> int:
        """How many slots a round of n covers."""
        return n

    @abstractmethod
    def run(
        self, lane: str, name: str, program: Callable[[], Any], n: int, key: object = None, after: Sequence[Run] = ()
    ) -> Run:
        """Run a program of n slots on a lane: behind all that was begun on it, and behind the runs in `after`, of the other lane.

        key: what the program depends on beside its name and n; for the same three it is the same sequence of ops on the same tables.
        """

    @abstractmethod
    def start(self, name: str, program: Callable[[], Any], n: int, key: object = None) -> Run:
        """The same on the draft's lane, beside the caller, who goes on at once."""

    @abstractmethod
    def once(self, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Run:
        """Run a program that will not come back, as a prompt's prefill. details: of its span."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """What is begun within runs behind all that was begun on either one, and before all that will be: what changes
        the tables that both read."""

    @abstractmethod
    def on(self, lane: str) -> AbstractContextManager[None]:
        """Ops called within run on this lane, too little to be a program. To be used `alone`."""

    @abstractmethod
    def send(self, lane: str, tables: Iterable[tuple[Tensor, Tensor]], n: int) -> Run:
        """Copy tables of this lane to the other one's device, behind all that was begun on this one: pairs (there, here), of n slots."""

    @abstractmethod
    def read(self, lane: str, table: Tensor) -> Reading:
        """Have a small table copied to the host at this point of the lane. Read it before `in_flight` + 1 more rounds are begun."""

    @abstractmethod
    def write(self, lane: str, table: Tensor, values: Tensor) -> None:
        """Have a table overwritten with the host's values at this point of the lane."""

    def forward(self, role: str, program: Callable[[], Result]) -> Result:
        """Within a program: one forward pass of `role`, "target" or "draft"."""
        return program()

    @abstractmethod
    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        """Within a program: run another one if any flag is set."""

    @abstractmethod
    def settle(self) -> None:
        """Wait for all that was begun and is still running, however it ends."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the loop in use needed; another loop may be run from now on, but nothing may be started."""


class EagerExecutor(Executor):
    """Runs programs as they are called: on the caller's thread, and what is started on one of the draft's own with `draft_threads`
    intra-op threads."""

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


class PacedExecutor(EagerExecutor):
    """Runs forward passes eagerly, each lasting at least `pace[role]` milliseconds."""

    kind = "paced"

    def __init__(self, trace: Trace, draft_threads: int, pace: tuple[float, float]) -> None:
        super().__init__(trace, draft_threads)
        self._least_s = {"target": pace[0] / 1e3, "draft": pace[1] / 1e3}

    def forward(self, role: str, program: Callable[[], Result]) -> Result:
        deadline = time.perf_counter() + self._least_s[role]
        result = program()
        if (left := deadline - time.perf_counter()) > 0:
            time.sleep(left)
        return result
