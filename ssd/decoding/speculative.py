"""Speculative decoding (Leviathan et al. 2023): draft, then verify, one after the other."""

from __future__ import annotations

from ssd.decoding.fallback import NgramSpeculator
from ssd.decoding.round import DraftFailed, Round, Verification
from ssd.decoding.speculator import Speculator
from ssd.decoding.verifier import Verifier


class Speculative:
    """Rounds of SSD with an empty cache: every look-up is a miss, drafted on the spot."""

    mode = "sd"

    def __init__(self, verifier: Verifier, speculator: Speculator | NgramSpeculator) -> None:
        self.verifier = verifier
        self.speculator = speculator

    def admit(self, slot: int) -> Verification:
        with DraftFailed.guard():
            self.speculator.prefill(slot)
        return self.verifier.prefill(slot)

    def round(self, n: int) -> Round:
        with DraftFailed.guard():
            drafting = self.speculator.look_up(n)
        result = Round(self.verifier.verify(n), self.verifier.speculation, draft=drafting)
        with DraftFailed.guard(result):
            self.speculator.keep(n, result.verification.path)
        return result

    def close(self) -> None:
        pass
