"""The engine's core. Requests join at any time. Each step stores a chunk of a prompt, starts a round, and reads earlier rounds.

The core has no thread of its own. A client that waits for its request takes the turn and steps for everybody; clients on other
threads sleep until their own requests have grown. So two streams that one thread reads in turn both advance, and a client that
goes away ends only its own request.

A prompt is stored in chunks, so that running requests get a round between two chunks (ssd/serving/storing.py).
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from ssd.decoding.failover import Failover, Loop
from ssd.decoding.round import Round, SlotReport, Verification
from ssd.errors import SsdError, one_line
from ssd.models.pair import OnProgress
from ssd.options import EngineOptions
from ssd.requests import FinishReason, Request
from ssd.runtime.cores import cores
from ssd.runtime.executor import Executor
from ssd.serving.scheduler import Scheduler
from ssd.serving.storing import PromptStore
from ssd.serving.turn import Turn, interrupts_deferred


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
        self._tokens_a_round = options.speculation_options.nodes  # the most that a round commits for a sequence
        self._prompts = PromptStore(scheduler, failover)
        self._added: deque[Request] = deque()
        self._aborted: deque[Request] = deque()
        self._closed: str | None = None  # why nothing runs any more
        self._turn = Turn()
        self._process = os.getpid()

    @property
    def loop(self) -> Loop:
        """The loop in use: autoregressive after the draft has failed."""
        return self.failover.loop

    @property
    def threads(self) -> int:
        """Intra-op threads of the target: all cores, except those of SSD's draft.

        In a forked child it is one: torch's OpenMP threads are not copied, and a loop over several would wait for them forever.
        """
        if self._process != os.getpid():
            return 1
        draft_threads = (self._options.draft_threads or 1) if self.loop.mode == "ssd" else 0
        return self._options.threads or max(1, cores() - draft_threads)

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
        self._check_open()
        self._added.append(request)

    def abort(self, request: Request) -> None:
        """End a request before it has finished. Its slot is freed after the rounds in flight. Other requests are not affected.

        Any thread may call it, and so may a finalizer. During a step, the slot is freed at the step's end.
        """
        if request.finished:
            return
        with interrupts_deferred():
            self._aborted.append(request)
            if self._turn.take():
                self._end_turn()

    def step(self) -> list[Request]:
        """Run one step for all requests and return the requests that grew or ended. Blocks while another thread steps.

        An error of the target ends every admitted request with that error; if there is none, it is raised. Raises SsdError
        after `close`.
        """
        grown: list[Request] = []
        while not self._try_step(lambda: False, grown):
            self._turn.sleep(lambda: False)
        self.warn()
        return grown

    def wait(self, ready: Callable[[], bool]) -> None:
        """Step for all requests, or sleep while another thread does, until `ready()`.

        Raises SsdError if the core is closed first, and an error of the target that ended no request.
        """
        while not ready():
            if not self._try_step(ready, []):
                self._turn.sleep(ready)
            self.warn()

    def warn(self) -> None:
        """Issue the warnings that steps have left. A step itself does not, because a filter may turn them into errors."""
        with suppress(IndexError):  # there are no more, or another thread has issued them
            while True:
                warnings.warn(self.failover.warnings.popleft(), RuntimeWarning, stacklevel=3)

    def close(self) -> None:
        """Refuse requests from now on, and release the executor's threads and graphs."""
        self._closed = self._closed or "this engine is closed; make another one."  # first, so that no further step begins
        with interrupts_deferred():
            while not self._turn.take():
                if self._turn.lost:
                    return  # the threads are the other process's
                self._turn.sleep(lambda: False)
            try:
                self.executor.close()
            finally:
                self._end_turn()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SsdError(self._closed)

    def _try_step(self, ready: Callable[[], bool], grown: list[Request]) -> bool:
        """Take the turn and step, unless `ready()`. Returns False if another thread has the turn.

        grown: a list that receives the requests that grew or ended.
        """
        with interrupts_deferred():
            if not self._turn.take():
                if self._turn.lost:
                    raise SsdError(
                        "this process was forked while another thread decoded with this engine, and cannot use it; fork between decodes, "
                        "or spawn a process and make an engine in it."
                    )
                return False
            try:
                if not ready():
                    self._check_open()
                    grown += self._step()
            finally:
                self._end_turn()
        return True

    def _end_turn(self) -> None:
        """Release the requests that were aborted meanwhile, and give the turn back."""
        while True:
            try:
                self._apply_adds_and_aborts()
            finally:
                self._turn.give_back()
            # An abort between the last look and the return found the turn taken, and left its request to this thread.
            if not self._aborted or not self._turn.take():
                break

    def _apply_adds_and_aborts(self) -> None:
        """Queue the requests added since the last step, and release the aborted ones."""
        while self._added:
            self.scheduler.add(self._added.popleft())
        while self._aborted:
            request = self._aborted.popleft()
            if not request.finished:
                self._release(request)
                request.finish_reason = "aborted"

    # A step -----------------------------------------------------------------------------------------------------------------

    def _step(self) -> list[Request]:
        try:
            with self._on_target_threads():
                self._apply_adds_and_aborts()
                self.in_flight += [InFlight([(0, request)], entered) for request, entered in self._prompts.store_chunks()]
                grown = self._reserve_pages()
                self._begin_round()
                return grown + self._read_reports()
        except BaseException as error:
            ended = self._fail(error)
            if not ended or not isinstance(error, Exception):
                raise
            return ended

    def _reserve_pages(self) -> list[Request]:
        """Give each running request the pages that the next round may write to, the oldest first.

        Where too few are left, the newest request is preempted. The rounds in flight are read before; returns those that grew.
        """
        grown: list[Request] = []
        for request in list(self.scheduler.running.values()):
            while self.scheduler.running.get(request.slot) is request:
                new = self.scheduler.grow(request, (len(self.in_flight) + 1) * self._tokens_a_round)
                if new is not None:
                    if new.pages:
                        self.failover.grow(request.slot, new.first, torch.tensor(new.pages, dtype=torch.int32))
                    break
                if not self.in_flight:
                    self._switch_off(newest := self.scheduler.newest)
                    self._check_open()
                    self.scheduler.preempt(newest)
                while self.in_flight:
                    grown += self._deliver(self.in_flight.popleft())
        return grown

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
            self.scheduler.check_idle()
        return grown

    def _deliver(self, finished: InFlight) -> list[Request]:
        """Append the committed tokens of a prefill or a round to its requests, except to those that have ended already."""
        verification, round = finished.verification, finished.round
        grown = []
        for row, request in finished.rows:
            report = verification.slots[row]
            # The newest token is not counted: its K/V is not stored yet.
            committed = report.length + 1 - len(request.prompt) - len(request.token_ids)
            if not request.finished and (committed > 0 or report.failed):
                grown.append((row, request, report, committed))
        if round is not None:
            self.failover.learn(round, {row: report for row, _, report, _ in grown})
        missed = any(report.missed for _, _, report, _ in grown)
        for row, request, report, committed in grown:
            first = len(request.token_ids)
            ending = request.append(report.newest[len(report.newest) - committed :])
            kept = len(request.token_ids) - first  # a stop string drops the tokens after it
            if round is None:
                request.stats.started()
            else:
                accepted = min(report.accepted, kept)
                request.stats.add(
                    round,
                    length=report.length - committed,
                    tokens=kept,
                    accepted=accepted,
                    proposed=report.proposed,
                    hit=report.hit,
                    missed=missed,
                    rank=round.rank(row),
                )
            if request.params.logprobs:
                output = verification.output
                request.append_logprobs(output.logits[row, output.path[row, :kept].long()], first)
            self._end_if_done(request, report, ending)
        return [request for _, request, _, _ in grown]

    def _end_if_done(self, request: Request, report: SlotReport, ending: FinishReason | None) -> None:
        """Release the request if its newest tokens end it, or if the target has no next token. ending: "stop" if they
        complete a stop string."""
        request.degraded |= self.failover.failure is not None
        if ending is None and report.failed:
            ending = request.flush() or request.lack_next_token()
        elif ending is None and report.done:
            ended = request.token_ids[-1] in self._eos and not request.params.ignore_eos
            ending = request.flush() or ("eos" if ended else "length")
        if ending is not None:
            self._release(request)
            request.finish_reason = ending  # last: a client on another thread now takes the request as it is

    def _release(self, request: Request) -> None:
        """Take a request's slot and pages back."""
        self._switch_off(request)
        self.scheduler.release(request)

    def _switch_off(self, request: Request) -> None:
        """Switch a request's slot off on the device, after the rounds in flight, and before another request uses the pages.

        If that fails, the core closes: the slot would write to another request's pages.
        """
        if request is self._prompts.storing:
            self._prompts.storing = None
        if self.scheduler.admitted.get(request.slot) is request and self._closed is None:
            try:  # also where the slot may not be switched on yet: that changes nothing
                with torch.inference_mode():
                    self.failover.retire(request.slot)
            except Exception as error:
                self._closed = f"this engine's target failed ({one_line(error)}); make another engine."

    def _fail(self, error: BaseException) -> list[Request]:
        """End every admitted request with the error of a step, and return them. Requests that wait for a slot go on waiting."""
        self.in_flight.clear()
        with suppress(Exception):  # the first error is the one to report
            self.executor.settle()
        cause = error if isinstance(error, Exception) else RuntimeError("decoding was interrupted")
        ended = list(self.scheduler.admitted.values())
        for request in ended:
            self._release(request)
            request.fail(cause)
        self.scheduler.pages.clear()  # nobody knows what was stored
        return ended

    @contextmanager
    def _on_target_threads(self) -> Iterator[None]:
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads_before)
