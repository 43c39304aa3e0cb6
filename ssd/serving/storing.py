"""The prompts that are being stored: one at a time, in chunks between rounds."""

from __future__ import annotations

from ssd.decoding.failover import Failover
from ssd.decoding.prefill import PREFILL_CHUNK
from ssd.decoding.round import Verification
from ssd.requests import Request
from ssd.serving.scheduler import Scheduler


class PromptStore:
    """Admits requests and stores what the prefix cache lacks of their tokens. storing: the request in the staging tables."""

    def __init__(self, scheduler: Scheduler, failover: Failover) -> None:
        self.storing: Request | None = None
        self._scheduler = scheduler
        self._failover = failover

    def store_chunks(self) -> list[tuple[Request, Verification]]:
        """Store the next chunks of the oldest prompts, at most PREFILL_CHUNK tokens in all. Returns the requests that run now.

        Where the cache had more pages of the target than of the draft, the draft catches up first.
        """
        left, entered = PREFILL_CHUNK, []
        while (request := self._next()) is not None:
            lags = request.draft_stored < request.stored
            start, end = (request.draft_stored, request.stored) if lags else (request.stored, request.to_store)
            stop = min(end, start + PREFILL_CHUNK)
            if stop - start > left:
                break
            left -= stop - start
            if lags:
                self._failover.catch_up(request.slot, start, stop)
            elif stop < end:
                self._failover.store(request.slot, start, stop)
            else:
                entered.append((request, self._failover.enter(request.slot, start, stop, request.resumes)))
            request.draft_stored = stop
            request.stored = max(request.stored, stop)
            if request.stored == request.to_store:
                self.storing = None
                self._scheduler.start(request)
        return entered

    def _next(self) -> Request | None:
        if self.storing is None and (request := self._scheduler.admit()) is not None:
            self.storing = request
            self._failover.stage(request)
            request.draft_reach = self._failover.draft_reach(request.length)
            if not request.draft_reach:
                request.draft_stored = request.stored  # there is nothing to catch up with
            request.stats.admitted(request.stored)
        return self.storing
