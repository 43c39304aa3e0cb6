"""Speculative decoding (Leviathan et al. 2023): draft, then verify, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from ssd.decoding.fallback import NgramSpeculator
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
        self.executor = executor
        self._verified: list[Run] = []

    def admit(self, slot: int, length: int, samples: bool) -> Verification:
        with DraftFailed.guard():
            self.speculator.prefill(slot, length, samples)
        return self.verifier.prefill(slot, length)

    def round(self, n: int) -> Round:
        speculator, sampled = self.speculator, self.verifier.speculation.sampled
        n = self.executor.batch(n)
        with DraftFailed.guard():
            drafted = self.executor.run("draft", "look up", lambda: speculator.look_up(n), n, sampled, self._verified)
        verification, verified = self.verifier.begin(n, drafted)
        self._verified = [verified]
        result = Round(verification, verified, drafted)
        if speculator.keeps:
            path = verification.decided.path
            with DraftFailed.guard(result):
                self.executor.run("draft", "keep", lambda: speculator.keep(n, path), n, sampled, self._verified)
        return result

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """What is drafted next does not depend on what was accepted."""
