"""Autoregressive decoding: one target pass a token. What every other mode must equal, and what is left when a draft fails."""

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
        return Round(*self.verifier.begin(self.executor.batch(n)))

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """There is no draft to teach."""
