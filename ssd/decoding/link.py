"""What the two sides of a round tell each other.

With one device nothing has to be told: both work on the same tables. With two, the draft keeps a copy of the sequences' state, and
the target one of the speculation; what keeps them the same is sent between the programs of a round, and taken in by the next one:

    target   verify ── report ─┐                                        ┌─ arrives │ verify
    draft                      └─ arrives │ look up │ leaves ── tokens ─┘

A report says where each sequence stands and its newest tokens; with the tokens of a request that samples goes what they were drawn
from. Tables that things arrive in need no second half: the other side writes them behind its own program, which waited for the one
that read them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.round import Decided
from ssd.decoding.state import SequenceState, Speculation
from ssd.runtime.executor import Executor, Run


@dataclass
class Tables:
    """What one side works on."""

    state: SequenceState
    staging: SequenceState  # one row: the prompt that is being stored
    speculation: Speculation


class Exchange:
    """One device: what both sides work on is the same."""

    def __init__(self, target: Tables, draft: Tables | None = None) -> None:
        self.target = target
        self.draft = draft or target

    def hold_distributions(self, budget: int, vocab_size: int) -> None:
        """A request samples: have q kept, of `budget` branches and the fallback, over vocab_size columns."""
        self.draft.speculation.hold_distributions(budget, vocab_size)

    def stage(self) -> None:
        """The target has staged a prompt. Called `alone`."""

    def enter(self, slot: int, decided: Decided) -> None:
        """The target's state has a new sequence in this slot, its prompt stored. Called `alone`."""

    def retire(self, slot: int) -> None:
        """The slot is free, and its pages soon another's."""

    def outcome_arrives(self, n: int) -> None:
        """Part of the look-up: the draft's state becomes what the target's is."""

    def speculation_leaves(self, n: int) -> list[Tensor]:
        """Part of the look-up: what is to be sent of the speculation."""
        return []

    def speculation_arrives(self, n: int) -> None:
        """Part of the verification: the target's speculation becomes what the draft's is."""

    def send_speculation(self, n: int, looked_up: Run) -> Run:
        """Returns what the verification is to wait for."""
        return looked_up

    def send_outcome(self, n: int, verified: Run) -> Run:
        """Returns what the next look-up is to wait for."""
        return verified

    def path(self, n: int, decided: Decided) -> Tensor:
        """[n, T] the accepted path, where the draft can read it."""
        return decided.path


class TwoDevices(Exchange):
    """Each side has its own. nodes: T, the rows of a verification; tree: whether the draft needs to know the path that was accepted.

    The parity of the target's speculation stays 0, and q has one address there: of each half of the draft's, only what was handed out is
    sent.
    """

    def __init__(self, target: Tables, draft: Tables, nodes: int, tree: bool, executor: Executor) -> None:
        super().__init__(target, draft)
        self._executor = executor
        slots, lookahead = draft.speculation.tokens.shape
        here, there = target.state.done.device, draft.state.done.device
        self._report = torch.zeros(slots, Decided.COUNTS + nodes, dtype=torch.int32, device=there)
        self._report[:, Decided.DONE] = 1
        self._path = torch.zeros(slots, nodes, dtype=torch.int32, device=there) if tree else None
        self._tokens = torch.zeros(slots, lookahead + 3, dtype=torch.int32, device=here)  # and length, hit, address
        self._q: list[Tensor] = []

    def hold_distributions(self, budget: int, vocab_size: int) -> None:
        if self._q:
            return
        super().hold_distributions(budget, vocab_size)
        speculation = self.target.speculation
        speculation.hold_distributions(0, vocab_size)
        self._q = [
            torch.empty(*speculation.tokens.shape, width, dtype=torch.float32, device=self._tokens.device)
            for width in (vocab_size, ops.STATS)
        ]

    def stage(self) -> None:
        self._executor.send("target", zip(self.draft.staging.by_slot(), self.target.staging.by_slot(), strict=True), 1)

    def enter(self, slot: int, decided: Decided) -> None:
        there, here = (side.state.only(slot).by_slot() for side in (self.draft, self.target))
        report = (self._report[slot : slot + 1], decided.report)
        self._executor.send("target", [*zip(there, here, strict=True), report], 1)

    def retire(self, slot: int) -> None:
        with self._executor.alone(), self._executor.on("draft"):
            self.draft.state.retire(slot)
            self._report[slot] = 0
            self._report[slot, Decided.DONE] = 1

    def outcome_arrives(self, n: int) -> None:
        state, report = self.draft.state.first(n), self._report[:n]
        length, done, accepted = (report[:, i] for i in (Decided.LENGTH, Decided.DONE, Decided.ACCEPTED))
        newest = report[:, Decided.COUNTS :]
        behind = torch.arange(1 - newest.shape[1], 1, dtype=torch.int64, device=report.device)
        state.tokens.scatter_(1, (length[:, None] + behind).clamp_min(0), newest)
        state.length.copy_(length)
        state.last_token.copy_(newest[:, -1])
        state.done.copy_(done)
        outcome = torch.stack([accepted, newest[:, -1]], dim=1)
        state.outcome.copy_(outcome[:, None].expand_as(state.outcome))

    def speculation_leaves(self, n: int) -> list[Tensor]:
        speculation = self.draft.speculation.first(n)
        address = speculation.q_address
        columns = torch.stack([speculation.length, speculation.hit.int(), address.clamp_max(0)], dim=1)
        leaving = [torch.cat([speculation.tokens, columns], dim=1)]
        if speculation.q_logits is not None and speculation.q_stats is not None:
            slot = torch.arange(n, device=address.device)
            at = (speculation.parity * speculation.q_logits.shape[2] + address.clamp_min(0)).long()
            leaving += [q.flatten(1, 2)[slot, at] for q in (speculation.q_logits, speculation.q_stats)]
        return leaving

    def speculation_arrives(self, n: int) -> None:
        speculation, arrived = self.target.speculation.first(n), self._tokens[:n]
        speculation.tokens.copy_(arrived[:, :-3])
        for table, column in zip((speculation.length, speculation.hit, speculation.q_address), (-3, -2, -1), strict=True):
            table.copy_(arrived[:, column])
        if speculation.q_logits is not None and speculation.q_stats is not None:
            for q, found in zip((speculation.q_logits, speculation.q_stats), self._q, strict=True):
                q[:, 0, 0].copy_(found[:n])

    def send_speculation(self, n: int, looked_up: Run) -> Run:
        into = [table[:n] for table in (self._tokens, *self._q)]
        return self._executor.send("draft", zip(into, looked_up.value, strict=True), n)

    def send_outcome(self, n: int, verified: Run) -> Run:
        decided: Decided = verified.value
        tables = [(self._report[:n], decided.report)]
        if self._path is not None:
            tables.append((self._path[:n], decided.path))
        return self._executor.send("target", tables, n)

    def path(self, n: int, decided: Decided) -> Tensor:
        assert self._path is not None
        return self._path[:n]
