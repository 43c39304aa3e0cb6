"""Autoregressive decoding: one target pass a token. What every other mode must equal, and what is left when a draft fails."""

from __future__ import annotations

from ssd.decoding.round import Round, Verification
from ssd.decoding.verifier import Verifier


class Autoregressive:
    """Rounds that verify nothing and draw one token."""

    mode = "ar"

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def admit(self, slot: int) -> Verification:
        return self.verifier.prefill(slot)

    def round(self, n: int) -> Round:
        return Round(self.verifier.verify(n), self.verifier.speculation)

    def close(self) -> None:
        pass
