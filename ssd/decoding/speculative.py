"""Speculative decoding (Leviathan et al. 2023): draft, then verify, one after the other.

target   |                 | verify S_T ........ |                     | verify S_{T+1} ....
draft    | draft S_T ..... |                     | draft S_{T+1} ..... |
"""

from __future__ import annotations

from collections.abc import Sequence

from ssd.decoding.drafters.drafter import Drafter
from ssd.decoding.link import Link
from ssd.decoding.prefill import Admitted
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor, Run


class Speculative:
    """Rounds that draft on the spot and verify. link: how the two sides reach each other."""

    mode = "sd"

    def __init__(self, verifier: Verifier, drafter: Drafter, link: Link, executor: Executor) -> None:
        self.verifier = verifier
        self.drafter = drafter
        self.link = link
        self.executor = executor
        self._verified: list[Run] = []  # what the draft's next program waits for

    def stage(self, request: Admitted) -> None:
        """Take up a request whose prompt is to be stored."""
        with self.executor.alone():
            self.verifier.stage(request)
            with DraftFailed.guard():
                self.drafter.stage(request.params.temperature > 0)
                self.link.stage()

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store tokens start..stop−1 of the staged prompt, which is to get this slot."""
        with DraftFailed.guard():
            self.drafter.store(slot, start, stop)
        self.verifier.store(slot, start, stop)

    def enter(self, slot: int, start: int, stop: int) -> Verification:
        """Store the last chunk of the staged prompt, commit its first token, and switch the slot on."""
        with self.executor.alone():
            with DraftFailed.guard():
                self.drafter.store(slot, start, stop)
            verification = self.verifier.enter(slot, start, stop)
            with DraftFailed.guard(verification):
                self.link.enter(slot, verification.output)
        return verification

    def retire(self, slot: int) -> None:
        """Switch a slot off, after the rounds in flight."""
        self.verifier.retire(slot)
        with DraftFailed.guard():
            self.link.retire(slot)

    def round(self, n: int) -> Round:
        verifier, drafter, link, executor = self.verifier, self.drafter, self.link, self.executor
        slots, sampled = executor.batch(n), verifier.tables.speculation.sampled
        with DraftFailed.guard():
            draft = link.on_draft(slots, lambda: drafter.draft(slots))
            drafting = executor.run("draft", "draft", draft, slots, sampled, self._verified)
            handed_out = link.send_speculation(slots, drafting)
        verify = link.on_target(slots, lambda: verifier.verify(slots))
        verified = executor.run("target", "verify", verify, slots, sampled, [handed_out])
        result = Round(verification=Verification.of(verified, executor), verified=verified, drafting=drafting)
        with DraftFailed.guard(result):
            self._verified = [link.send_outcome(slots, verified)]
            if drafter.keeps:
                path = link.path(slots, result.verification.output)
                executor.run("draft", "keep", lambda: drafter.keep(slots, path), slots, sampled, self._verified)
        return result

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """The outcomes teach nothing here; but the draft's part of this round is over, or has failed."""
        assert round.drafting is not None
        with DraftFailed.guard():
            round.drafting.wait()
