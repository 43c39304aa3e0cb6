"""Speculative decoding (Leviathan et al. 2023): draft, then verify, one after the other.

target   |                 | verify S_T ........ |                     | verify S_{T+1} ....
draft    | draft S_T ..... |                     | draft S_{T+1} ..... |
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ssd.decoding.drafters.drafter import Drafter
from ssd.decoding.link import Link
from ssd.decoding.prefill import Admitted
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.verifier import Verifier
from ssd.runtime.executor import Executor, Run

BAD_ROUNDS = 8  # after so many in a row the draft counts as failed


class Speculative:
    """Rounds that draft on the spot and verify. link: the messages between the two sides."""

    mode = "sd"

    def __init__(self, verifier: Verifier, drafter: Drafter, link: Link, executor: Executor) -> None:
        self.verifier = verifier
        self.drafter = drafter
        self.link = link
        self.executor = executor
        self._outcome_sent: list[Run] = []  # the run that the draft's next program waits for
        self._bad_rounds = 0  # in a row, up to the last round

    def stage(self, request: Admitted) -> None:
        """Write a request into the staging tables, so that its prompt can be stored."""
        with self.executor.alone():
            self.verifier.stage(request)
            with DraftFailed.guard():
                self.drafter.stage(request)
                self.link.stage()

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of tokens start..stop−1 of the staged prompt, which will get this slot."""
        with DraftFailed.guard():
            self.drafter.store(slot, start, stop)
        self.verifier.store(slot, start, stop)

    def catch_up(self, slot: int, start: int, stop: int) -> None:
        """Store the draft's K/V alone, of tokens that the target has stored already."""
        with DraftFailed.guard():
            self.drafter.store(slot, start, stop)

    def enter(self, slot: int, start: int, stop: int, resumes: bool) -> Verification:
        """Store the last chunk of the staged prompt, commit its first token, and switch the slot on.

        resumes: whether the request ran before it was preempted. Then nothing is committed.
        """
        with self.executor.alone():
            with DraftFailed.guard():
                self.drafter.store(slot, start, stop)
            verification = self.verifier.enter(slot, start, stop, resumes)
            with DraftFailed.guard(verification):
                self.link.enter(slot, verification.output)
        return verification

    def grow(self, slot: int, first: int, pages: Tensor) -> None:
        """Name further pages of a slot, from its `first` one on, for later rounds. pages: [count] int32, on the host."""
        self.verifier.grow(slot, first, pages)
        with DraftFailed.guard():
            self.executor.write("draft", self.drafter.tables.state.page_table[slot, first : first + len(pages)], pages)

    def draft_reach(self, tokens: int) -> int:
        """The number of tokens of a sequence whose K/V the draft stores at most, if it is admitted with `tokens` tokens."""
        return self.drafter.reach(tokens)

    def retire(self, slot: int) -> None:
        """Switch a slot off, after the rounds in flight."""
        self.verifier.retire(slot)
        with DraftFailed.guard():
            self.link.retire(slot)

    def round(self, n: int) -> Round:
        verifier, drafter, link, executor = self.verifier, self.drafter, self.link, self.executor
        slots, sampled = executor.batch(n), verifier.tables.speculation.sampled
        with DraftFailed.guard():
            draft_program = link.on_draft(slots, lambda: drafter.draft(slots))
            drafting = executor.run("draft", "draft", draft_program, slots, key=sampled, after=self._outcome_sent)
            sent = link.send_speculation(slots, drafting)
        verify_program = link.on_target(slots, lambda: verifier.verify(slots))
        verified = executor.run("target", "verify", verify_program, slots, key=sampled, after=[sent])
        result = Round(verification=Verification.of(verified, executor), verified=verified, drafting=drafting)
        with DraftFailed.guard(result):
            self._outcome_sent = [link.send_outcome(slots, verified)]
            if drafter.needs_compaction:
                path = link.path(slots, result.verification.output)
                executor.run(
                    "draft", "compact", lambda: drafter.compact(slots, path), slots, key=sampled, after=self._outcome_sent
                )
        return result

    def learn(self, round: Round, reports: Mapping[int, SlotReport]) -> None:
        """Outcomes teach plain speculation nothing. Wait for the draft's part of the round, to learn whether it failed."""
        assert round.drafting is not None
        with DraftFailed.guard():
            round.drafting.wait()
            self._count_bad_round(reports)

    def _count_bad_round(self, reports: Mapping[int, SlotReport]) -> None:
        """Raise an error after BAD_ROUNDS rounds in a row in which logits of the draft were not finite."""
        if reports:
            self._bad_rounds = self._bad_rounds + 1 if any(report.bad for report in reports.values()) else 0
        if self._bad_rounds >= BAD_ROUNDS:
            raise FloatingPointError(f"its logits had NaN, +inf or no finite number in {BAD_ROUNDS} rounds in a row")
