"""Speculative decoding (Leviathan et al. 2023): draft, then verify, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from ssd.decoding.fallback import NgramSpeculator
from ssd.decoding.prefill import Admitted
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.speculator import Speculator
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor, Run


class Speculative:
    """Rounds of SSD with an empty cache: every look-up is a miss, drafted on the spot."""

    mode = "sd"

    def __init__(self, verifier: Verifier, speculator: Speculator | NgramSpeculator, executor: Executor) -> None:
        self.verifier = verifier
        self.speculator = speculator
        self.exchange = verifier.exchange
        self.executor = executor
        self._verified: list[Run] = []

    def stage(self, request: Admitted) -> None:
        """Take up a request whose prompt is to be stored."""
        with self.executor.alone():
            self.verifier.stage(request)
            with DraftFailed.guard():
                self.speculator.stage(request.params.temperature > 0)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store tokens start..stop−1 of the staged prompt, which is to get this slot."""
        with DraftFailed.guard():
            self.speculator.store(slot, start, stop)
        self.verifier.store(slot, start, stop)

    def enter(self, slot: int, start: int, stop: int) -> Verification:
        """Store the last chunk of the staged prompt, commit its first token, and switch the slot on."""
        with self.executor.alone():
            with DraftFailed.guard():
                self.speculator.store(slot, start, stop)
            verification = self.verifier.enter(slot, start, stop)
            with DraftFailed.guard(verification):
                self.exchange.enter(slot, verification.decided)
        return verification

    def retire(self, slot: int) -> None:
        """Switch a slot off, after the rounds in flight."""
        self.verifier.retire(slot)
        with DraftFailed.guard():
            self.exchange.retire(slot)

    def round(self, n: int) -> Round:
        speculator, sampled = self.speculator, self.verifier.speculation.sampled
        n = self.executor.batch(n)
        with DraftFailed.guard():
            drafted = self.executor.run("draft", "look up", lambda: speculator.look_up(n), n, sampled, self._verified)
            handed_out = self.exchange.send_speculation(n, drafted)
        verification, verified = self.verifier.begin(n, handed_out)
        result = Round(verification, verified, drafted)
        with DraftFailed.guard(result):
            self._verified = [self.exchange.send_outcome(n, verified)]
            if speculator.keeps:
                path = self.exchange.path(n, verification.decided)
                self.executor.run("draft", "keep", lambda: speculator.keep(n, path), n, sampled, self._verified)
        return result

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """What is drafted next does not depend on what was accepted; but what the draft did in this round is over, or has failed."""
        assert round.draft is not None
        with DraftFailed.guard():
            round.draft.wait()
