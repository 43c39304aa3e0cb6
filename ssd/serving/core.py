"""The engine's core: requests join it at any time, and each step stores a piece of a prompt, runs a round, and reads earlier ones.

The core has no thread of its own. A client that waits for its request takes the turn and steps for everybody; clients on other
threads sleep until their own request has grown. So two streams read in turn by one thread both advance, and a client that goes away
takes only its own request with it.

A prompt is stored in chunks, at most PREFILL_CHUNK tokens a step, so that running requests get a round between two chunks.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ssd.decoding.failover import Failover, Loop
from ssd.decoding.prefill import PREFILL_CHUNK
from ssd.decoding.round import Round, SlotReport, Verification
from ssd.errors import SsdError
from ssd.models.pair import OnProgress
from ssd.options import EngineOptions
from ssd.requests import Request
from ssd.runtime.executor import Executor
from ssd.serving.scheduler import Scheduler


@dataclass
class InFlight:
    """Work in flight. `rows` pairs each row of its report with its request: row = slot for a round, 0 for a prefill."""

    rows: list[tuple[int, Request]]
    begun: Round | Verification

    @property
    def round(self) -> Round | None:
        return self.begun if isinstance(self.begun, Round) else None

    @property
    def verification(self) -> Verification:
        return self.begun.verification if isinstance(self.begun, Round) else self.begun


class Core:
    """Runs requests. options: for the numbers of threads. eos: token ids that end a sequence."""

    def __init__(
        self, scheduler: Scheduler, failover: Failover, executor: Executor, options: EngineOptions, eos: Sequence[int]
    ) -> None:
        self.scheduler = scheduler
        self.failover = failover
        self.executor = executor
        self.in_flight: deque[InFlight] = deque()
        self._options = options
        self._eos = eos
        self._storing: Request | None = None  # its prompt is in the staging tables
        self._added: deque[Request] = deque()
        self._aborted: deque[Request] = deque()
        self._closed = False
        self._turn = threading.Condition()
        self._stepping = False

    @property
    def loop(self) -> Loop:
        """The loop in use: autoregressive after the draft has failed."""
        return self.failover.loop

    @property
    def threads(self) -> int:
        """Intra-op threads of the target: all cores, except those of SSD's draft."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        draft_threads = (self._options.draft_threads or 1) if self.loop.mode == "ssd" else 0
        return self._options.threads or max(1, cores - draft_threads)

    def warm_up(self, progress: OnProgress) -> None:
        """Warm up, then record, each batch size's greedy programs, where the executor records any. Sampling programs and the other fallback
        of "auto" are recorded on first use."""
        self.executor.settle()  # the tables are allocated
        with torch.inference_mode():
            for i, slots in enumerate(sizes := self.executor.prepared):
                self.failover.round(slots)
                self.failover.round(slots)
                progress((i + 1) / len(sizes))
        self.executor.settle()

    # What clients call ------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Let a request join the running batch as soon as there is room. Raises SsdError once the core is closed."""
        if self._closed:
            raise SsdError("this engine is closed; make another one.")
        self._added.append(request)

    def abort(self, request: Request) -> None:
        """End a request that nobody wants any more. Its slot is freed after the rounds in flight; other requests do not notice.

        Any thread may call it, also from a finalizer: if a step is under way, the slot is freed at its end.
        """
        if request.finished:
            return
        self._aborted.append(request)
        with self._turn:
            if not self._stepping:
                self._take_in()

    def step(self) -> list[Request]:
        """Do one step for all requests and return those that grew or ended. Waits while another thread steps.

        Raises an error of the target, after every admitted request has been failed with it.
        """
        with _interrupts_deferred(), self._own_turn(lambda: False):
            return self._step()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Step for all, or sleep while another thread does, until `ready()`. Raises SsdError if the core is closed before."""
        while not ready():
            if self._closed:
                raise SsdError("this engine was closed before the request was finished; make another one.")
            with _interrupts_deferred(), self._own_turn(ready) as mine:
                if mine:
                    self._step()

    def close(self) -> None:
        """Refuse requests from now on, and release the executor's threads and graphs."""
        self._closed = True
        with self._own_turn(lambda: False):
            self.executor.close()

    @contextmanager
    def _own_turn(self, ready: Callable[[], bool]) -> Iterator[bool]:
        """Within it this thread alone may step. Yields False, without the turn, if `ready()` came true first."""
        with self._turn:
            self._turn.wait_for(lambda: ready() or not self._stepping)
            mine = not self._stepping and not ready()
            self._stepping |= mine
        try:
            yield mine
        finally:
            if mine:
                with self._turn:
                    self._take_in()
                    self._stepping = False
                    self._turn.notify_all()

    def _take_in(self) -> None:
        """Take in the requests that were added and release those that were aborted since the last step."""
        while self._added:
            self.scheduler.add(self._added.popleft())
        while self._aborted:
            request = self._aborted.popleft()
            if not request.finished:
                request.finish_reason = "aborted"
                with torch.inference_mode():
                    self._release(request)

    # A step -----------------------------------------------------------------------------------------------------------------

    def _step(self) -> list[Request]:
        try:
            with self._on_target_threads():
                self._take_in()
                self._store_prompts()
                self._begin_round()
                return self._read()
        except BaseException as error:
            self._fail(error)
            raise

    def _store_prompts(self) -> None:
        """Store the next chunks of the oldest prompts, PREFILL_CHUNK tokens together, but at least one chunk."""
        left = PREFILL_CHUNK
        while (request := self._next_to_store()) is not None:
            start, stop = request.stored, min(len(request.prompt), request.stored + PREFILL_CHUNK)
            if stop - start > left:
                return
            left -= stop - start
            if stop < len(request.prompt):
                self.failover.store(request.slot, start, stop)
                request.stored = stop
                return
            verification = self.failover.enter(request.slot, start, stop)
            request.stored = stop
            self._storing = None
            self.scheduler.start(request)
            self.in_flight.append(InFlight([(0, request)], verification))

    def _next_to_store(self) -> Request | None:
        if self._storing is None and (request := self.scheduler.admit()) is not None:
            self._storing = request
            self.failover.stage(request)
        return self._storing

    def _begin_round(self) -> None:
        if self.scheduler.running:
            rows = list(self.scheduler.running.items())
            with self.executor.trace.named("round"):
                self.in_flight.append(InFlight(rows, self.failover.round(self.scheduler.batch)))

    def _read(self) -> list[Request]:
        """Read the oldest rounds, until no more than the executor's limit are in flight. Returns the requests that grew."""
        running = self.scheduler.running.values()
        needs_logits = any(request.params.logprobs for request in running)  # the next verification overwrites them
        limit = 0 if needs_logits or not running else self.executor.in_flight
        grown: list[Request] = []
        while len(self.in_flight) > limit:
            grown += self._take(self.in_flight.popleft())
        if not self.scheduler.busy and not self.in_flight:
            self.scheduler.check_integrity()
        return grown

    def _take(self, done: InFlight) -> list[Request]:
        """Hand what a prefill or a round committed to its requests, but for those that ended before."""
        verification, round = done.verification, done.round
        grown = []
        for row, request in done.rows:
            report = verification.slots[row]
            committed = report.length + 1 - len(request.prompt) - len(request.token_ids)
            if not request.finished and committed > 0:
                grown.append((row, request, report, committed))
        if round is not None:
            self.failover.learn(round, [report for _, _, report, _ in grown])
        missed = not all(report.hit for _, _, report, _ in grown)
        for row, request, report, committed in grown:
            if round is None:
                request.stats.started()
            else:
                accepted = min(report.accepted, committed)
                request.stats.add(
                    round, accepted=accepted, proposed=report.proposed, hit=report.hit, missed=missed, rank=round.rank(row)
                )
            self._append(request, verification, row, report, committed)
        return [request for _, request, _, _ in grown]

    def _append(self, request: Request, verification: Verification, row: int, report: SlotReport, committed: int) -> None:
        """Append the committed tokens, and release the request if they end it."""
        first = len(request.token_ids)
        request.append(report.newest[-committed:])
        if request.params.logprobs:
            output = verification.output
            rows = output.path[row, : len(request.token_ids) - first].long()
            request.append_logprobs(output.logits[row, rows], first)
        request.degraded |= self.failover.failure is not None
        if not request.finished and report.done:
            ended = request.token_ids[-1] in self._eos and not request.params.ignore_eos
            request.finish("eos" if ended else "length")
        if request.finished:
            self._release(request)

    def _release(self, request: Request) -> None:
        """Take back a request's slot and pages. The device frees the slot after the rounds in flight, before its pages are reused."""
        if self.scheduler.running.get(request.slot) is request:
            self.failover.retire(request.slot)
        if request is self._storing:
            self._storing = None
        self.scheduler.release(request)

    def _fail(self, error: BaseException) -> None:
        """A step raised: end every admitted request with the error. Those that wait for a slot go on waiting."""
        self.in_flight.clear()
        with suppress(Exception):  # the first error is the one to report
            self.executor.settle()
        cause = error if isinstance(error, Exception) else RuntimeError("decoding was interrupted")
        for request in list(self.scheduler.admitted.values()):
            request.fail(cause)
            try:
                with torch.inference_mode():
                    self._release(request)
            except Exception:
                self.scheduler.release(request)

    @contextmanager
    def _on_target_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Raise a Ctrl-C that comes within the block at its end, so that no step is cut in half. A second one is raised at once."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[Any, ...]] = []

    def defer(*arguments: Any) -> None:
        if came:
            handler(*arguments)
        came.append(arguments)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])
