"""Autoregressive decoding: one target pass per token. Every other mode must equal it. It takes over when a draft fails."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ssd.decoding.prefill import Admitted
from ssd.decoding.round import Round, SlotReport, Verification
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor


class Autoregressive:
    """Rounds that verify no proposal and draw one token."""

    mode = "ar"

    def __init__(self, verifier: Verifier, executor: Executor) -> None:
        self.verifier = verifier
        self.executor = executor

    def stage(self, request: Admitted) -> None:
        with self.executor.alone():
            self.verifier.stage(request)

    def store(self, slot: int, start: int, stop: int) -> None:
        self.verifier.store(slot, start, stop)

    def catch_up(self, slot: int, start: int, stop: int) -> None:
        """There is no draft that could lag behind."""

    def enter(self, slot: int, start: int, stop: int, resumes: bool) -> Verification:
        with self.executor.alone():
            return self.verifier.enter(slot, start, stop, resumes)

    def grow(self, slot: int, first: int, pages: Tensor) -> None:
        self.verifier.grow(slot, first, pages)

    def draft_reach(self, tokens: int) -> int:
        return 0

    def retire(self, slot: int) -> None:
        self.verifier.retire(slot)

    def round(self, n: int) -> Round:
        slots = self.executor.batch(n)
        verified = self.executor.run("target", "verify", lambda: self.verifier.verify(slots), slots)
        return Round(verification=Verification.of(verified, self.executor), verified=verified)

    def learn(self, round: Round, reports: Mapping[int, SlotReport]) -> None:
        """There is no draft to teach."""
