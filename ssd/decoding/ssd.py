"""Speculative speculative decoding (arXiv 2603.03251): the next speculation is drafted while this one is verified.

target   | verify S_T ............................ | outcome (k,t*) | verify S_{T+1} ...........
draft    | extend trunk | fork | K branch steps ... |    look up     | extend | fork | K branch steps
"""

from __future__ import annotations

from collections.abc import Sequence

from ssd.decoding.round import DraftFailed, Round, SlotReport
from ssd.decoding.speculative import Speculative
from ssd.decoding.speculator import Speculator
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor


class SpeculativeSpeculative(Speculative):
    """Rounds whose drafting has left the critical path: a hit goes to the target at once."""

    mode = "ssd"
    speculator: Speculator

    def __init__(self, verifier: Verifier, speculator: Speculator, executor: Executor) -> None:
        super().__init__(verifier, speculator, executor)
        self._neural = True

    def round(self, n: int) -> Round:
        speculator, before, sampled = self.speculator, self._neural, self.verifier.speculation.sampled
        self._neural = neural = speculator.drafts_misses(n)
        n = self.executor.batch(n)
        with DraftFailed.guard():
            looked_up = self.executor.run(
                "draft", "look up", lambda: speculator.look_up(n, neural), n, (neural, sampled), self._verified
            )
            handed_out = self.exchange.send_speculation(n, looked_up)
            seen = self.executor.read("draft", speculator.draft.seen[:n])
            branching = self.executor.start("speculate", lambda: speculator.branch(n), n, sampled)
        verification, verified = self.verifier.begin(n, handed_out)
        result = Round(verification, verified, branching, looked_up, (before, neural), speculator.budget, seen)
        with DraftFailed.guard(result):
            self._verified = [self.exchange.send_outcome(n, verified)]
        return result

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """Behind a round: take in what its look-up saw. reports: of the sequences that were in it."""
        with DraftFailed.guard():
            self.speculator.learn(round, reports)
