"""The engine's core. Requests join at any time. Each step stores a chunk of a prompt, starts a round, and reads earlier rounds.

The core has no thread of its own. A client that waits for its request takes the turn and steps for everybody; clients on other
threads sleep until their own requests have grown. So two streams that one thread reads in turn both advance, and a client that
goes away ends only its own request.

A prompt is stored in chunks, at most PREFILL_CHUNK tokens per step, so that running requests get a round between two chunks.
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
    work: Round | Verification

    @property
    def round(self) -> Round | None:
        return self.work if isinstance(self.work, Round) else None

    @property
    def verification(self) -> Verification:
        return self.work.verification if isinstance(self.work, Round) else self.work


class Core:
    """Runs requests. options: the source of the numbers of threads. eos: the token ids that end a sequence."""

    def __init__(
        self, scheduler: Scheduler, failover: Failover, executor: Executor, options: EngineOptions, eos: Sequence[int]
    ) -> None:
        self.scheduler = scheduler
        self.failover = failover
        self.executor = executor
        self.in_flight: deque[InFlight] = deque()
        self._options = options
        self._eos = eos
        self._storing: Request | None = None  # the request whose prompt is in the staging tables
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
        """Warm up, then record, the greedy programs of each batch size, if the executor records programs.

        Sampling programs and the other fallback of "auto" are recorded on first use.
        """
        self.executor.settle()  # the tables must be allocated before their programs run
        with torch.inference_mode():
            for i, slots in enumerate(sizes := self.executor.prepared):
                self.failover.round(slots)
                self.failover.round(slots)
                progress((i + 1) / len(sizes))
        self.executor.settle()

    # For clients ------------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Add a request; it joins the running batch as soon as there is room. Raises SsdError after `close`."""
        if self._closed:
            raise SsdError("this engine is closed; make another one.")
        self._added.append(request)

    def abort(self, request: Request) -> None:
        """End a request before it has finished. Its slot is freed after the rounds in flight. Other requests are not affected.

        Any thread may call it, and so may a finalizer. During a step, the slot is freed at the step's end.
        """
        if request.finished:
            return
        self._aborted.append(request)
        with self._turn:
            if not self._stepping:
                self._apply_adds_and_aborts()

    def step(self) -> list[Request]:
        """Run one step for all requests and return the requests that grew. Blocks while another thread steps.

        Raises an error of the target, after ending every admitted request with it.
        """
        with _interrupts_deferred(), self._turn_to_step(lambda: False):
            return self._step()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Step for all requests, or sleep while another thread does, until `ready()`.

        Raises SsdError if the core is closed first.
        """
        while not ready():
            if self._closed:
                raise SsdError("this engine was closed before the request was finished; make another one.")
            with _interrupts_deferred(), self._turn_to_step(ready) as has_turn:
                if has_turn:
                    self._step()

    def close(self) -> None:
        """Refuse requests from now on, and release the executor's threads and graphs."""
        self._closed = True
        with self._turn_to_step(lambda: False):
            self.executor.close()

    @contextmanager
    def _turn_to_step(self, ready: Callable[[], bool]) -> Iterator[bool]:
        """A context in which only this thread may step. Yields False, without the turn, if `ready()` becomes true first."""
        with self._turn:
            self._turn.wait_for(lambda: ready() or not self._stepping)
            has_turn = not self._stepping and not ready()
            self._stepping |= has_turn
        try:
            yield has_turn
        finally:
            if has_turn:
                with self._turn:
                    self._apply_adds_and_aborts()
                    self._stepping = False
                    self._turn.notify_all()

    def _apply_adds_and_aborts(self) -> None:
        """Queue the requests added since the last step, and release the aborted ones."""
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
                self._apply_adds_and_aborts()
                self._store_prompts()
                self._begin_round()
                return self._read_reports()
        except BaseException as error:
            self._fail(error)
            raise

    def _store_prompts(self) -> None:
        """Store the next chunks of the oldest prompts, at most PREFILL_CHUNK tokens in all."""
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

    def _read_reports(self) -> list[Request]:
        """Read the oldest work in flight, until no more than the executor's limit is left. Returns the requests that grew."""
        running = self.scheduler.running.values()
        needs_logits = any(request.params.logprobs for request in running)  # the next verification overwrites them
        limit = 0 if needs_logits or not running else self.executor.in_flight
        grown: list[Request] = []
        while len(self.in_flight) > limit:
            grown += self._deliver(self.in_flight.popleft())
        if not self.scheduler.busy and not self.in_flight:
            self.scheduler.check_integrity()
        return grown

    def _deliver(self, finished: InFlight) -> list[Request]:
        """Append the committed tokens of a prefill or a round to its requests, except to those that have ended already."""
        verification, round = finished.verification, finished.round
        grown = []
        for row, request in finished.rows:
            report = verification.slots[row]
            # The newest token is not counted: its K/V is not stored yet.
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
            self._append_tokens(request, verification, row, report, committed)
        return [request for _, request, _, _ in grown]

    def _append_tokens(
        self, request: Request, verification: Verification, row: int, report: SlotReport, committed: int
    ) -> None:
        """Append the committed tokens. Release the request if they end it."""
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
        """Take a request's slot and pages back.

        The device switches the slot off after the rounds in flight, and before another request uses the pages.
        """
        if self.scheduler.running.get(request.slot) is request:
            self.failover.retire(request.slot)
        if request is self._storing:
            self._storing = None
        self.scheduler.release(request)

    def _fail(self, error: BaseException) -> None:
        """End every admitted request with the error of a step. Requests that wait for a slot go on waiting."""
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
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads_before)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Delay a Ctrl-C inside the block until its end, so that it cannot cut a step in half. A second one is raised at once."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[Any, ...]] = []

    def defer(*arguments: Any) -> None:
        if received:
            handler(*arguments)
        received.append(arguments)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[0])
