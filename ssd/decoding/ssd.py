"""Speculative speculative decoding (arXiv 2603.03251): the next speculation is drafted while this one is verified.

target   | verify S_T ............................ | outcome (k,t*) | verify S_{T+1} ...........
draft    | extend trunk | fork | K branch steps ... |    look up     | extend | fork | K branch steps
"""

from __future__ import annotations

from ssd.decoding.round import DraftFailed, Round, Verification
from ssd.decoding.speculator import Speculator
from ssd.decoding.verifier import Verifier
from ssd.runtime.worker import Worker


class SpeculativeSpeculative:
    """Rounds whose drafting has left the critical path: a hit goes to the target at once."""

    mode = "ssd"

    def __init__(self, verifier: Verifier, speculator: Speculator, worker: Worker) -> None:
        self.verifier = verifier
        self.speculator = speculator
        self.worker = worker

    def admit(self, slot: int) -> Verification:
        with DraftFailed.guard():
            self.speculator.prefill(slot)
        return self.verifier.prefill(slot)

    def round(self, n: int) -> Round:
        with DraftFailed.guard():
            look_up = self.speculator.look_up(n)
        branching = self.worker.submit(self.speculator.branch, n)
        try:
            verification = self.verifier.verify(n)
        finally:
            failure = branching.exception()  # waits: the draft is never left running
        result = Round(verification, self.verifier.speculation, look_up, branches=self.speculator.budget)
        if failure is not None:
            raise DraftFailed(result) from failure
        result.draft = branching.result()
        return result

    def close(self) -> None:
        self.worker.close()
