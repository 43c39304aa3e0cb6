"""Autoregressive decoding: one target pass a token. Every other mode must equal it, and it goes on when a draft fails."""

from __future__ import annotations

from collections.abc import Sequence

from ssd.decoding.round import Round, SlotReport, Verification
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor


class Autoregressive:
    """Rounds that verify nothing and draw one token."""

    mode = "ar"

    def __init__(self, verifier: Verifier, executor: Executor) -> None:
        self.verifier = verifier
        self.executor = executor

    def admit(self, slot: int, length: int, samples: bool) -> Verification:
        with self.executor.alone():
            return self.verifier.prefill(slot, length)

    def retire(self, slot: int) -> None:
        """The target's own state is all there is."""

    def round(self, n: int) -> Round:
        slots = self.executor.batch(n)
        verified = self.executor.run("target", "verify", lambda: self.verifier.verify(slots), slots)
        return Round(verification=Verification.of(verified, self.executor), verified=verified)

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """There is no draft to teach."""
