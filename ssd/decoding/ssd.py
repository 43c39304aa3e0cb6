"""Speculative speculative decoding (arXiv 2603.03251): the next speculation is drafted while this one is verified.

target   | verify S_T ............................ | outcome (k,t*) | verify S_{T+1} ...........
draft    | extend trunk | fork | K branch steps ... |    look up     | extend | fork | K branch steps
"""

from __future__ import annotations

from collections.abc import Mapping

from ssd.decoding.cache import SpeculationCache
from ssd.decoding.link import Link
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.speculative import Speculative
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor


class SpeculativeSpeculative(Speculative):
    """Rounds whose drafting has left the critical path: a hit goes to the target at once."""

    mode = "ssd"

    def __init__(self, verifier: Verifier, cache: SpeculationCache, link: Link, executor: Executor) -> None:
        super().__init__(verifier, cache.drafter, link, executor)
        self.cache = cache
        self._neural = True  # whether the draft model drafted for the last round's misses

    def round(self, n: int) -> Round:
        verifier, cache, link, executor = self.verifier, self.cache, self.link, self.executor
        slots, sampled = executor.batch(n), verifier.tables.speculation.sampled
        neural, neural_before = cache.fallback.choose(n) == "neural", self._neural
        self._neural = neural
        with DraftFailed.guard():
            look_up_program = link.on_draft(slots, lambda: cache.look_up(slots, neural))
            looked_up = executor.run(
                "draft", "look up", look_up_program, slots, key=(neural, sampled), after=self._outcome_sent
            )
            sent = link.send_speculation(slots, looked_up)
            seen = executor.read("draft", cache.tables.branches.seen[:slots])
            drafting = executor.start("speculate", lambda: cache.branch(slots), slots, key=sampled)
        verify_program = link.on_target(slots, lambda: verifier.verify(slots))
        verified = executor.run("target", "verify", verify_program, slots, key=sampled, after=[sent])
        result = Round(
            verification=Verification.of(verified, executor),
            verified=verified,
            drafting=drafting,
            looked_up=looked_up,
            neural=neural,
            neural_before=neural_before,
            budget=cache.tables.branches.budget,
            draft_context=cache.tables.context,
            seen=seen,
        )
        with DraftFailed.guard(result):
            self._outcome_sent = [link.send_outcome(slots, verified)]
        return result

    def learn(self, round: Round, reports: Mapping[int, SlotReport]) -> None:
        """Learn from the outcomes that the round's look-up saw. reports: see `SpeculationCache.learn`."""
        with DraftFailed.guard():
            self.cache.learn(round, reports)
            self._count_bad_round(reports)
