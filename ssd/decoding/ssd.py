"""Speculative speculative decoding (arXiv 2603.03251): the next speculation is drafted while this one is verified.

target   | verify S_T ............................ | outcome (k,t*) | verify S_{T+1} ...........
draft    | extend trunk | fork | K branch steps ... |    look up     | extend | fork | K branch steps
"""

from __future__ import annotations

from concurrent.futures import Future, wait

from ssd.decoding.round import DraftFailed, Round, Verification
from ssd.decoding.speculator import Speculator
from ssd.decoding.verifier import Verifier
from ssd.runtime.trace import Span
from ssd.runtime.worker import Worker


class SpeculativeSpeculative:
    """Rounds whose drafting has left the critical path: a hit goes to the target at once."""

    mode = "ssd"

    def __init__(self, verifier: Verifier, speculator: Speculator, worker: Worker) -> None:
        self.verifier = verifier
        self.speculator = speculator
        self.worker = worker
        self._branching: Future[Span] | None = None

    def admit(self, slot: int) -> Verification:
        self._settle()
        with DraftFailed.guard():
            self.speculator.prefill(slot)
        return self.verifier.prefill(slot)

    def round(self, n: int) -> Round:
        self._settle()
        with DraftFailed.guard():
            fallback = self.speculator.look_up(n)
            self._branching = self.worker.submit(self.speculator.branch, n)
        verification = self.verifier.verify(n)
        result = Round(verification, self.verifier.speculation, fallback=fallback, branches=self.speculator.budget)
        with DraftFailed.guard(result):
            result.draft = self._branching.result()
            self.speculator.learn(n, verification.span, result.draft, fallback)
        result.seen = self.speculator.draft.seen[:n]
        return result

    def _settle(self) -> None:
        """Wait for a branch that an error or an interrupt left running: it must not meet the next round's tables."""
        if self._branching is not None:
            wait([self._branching])

    def close(self) -> None:
        self.worker.close()
