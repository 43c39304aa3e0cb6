"""How the two sides of a round reach each other. The loops put it around their programs; neither side knows of it.

On one device there is nothing to do: both sides work on the same tables, and `Link` sends nothing. On two, the draft keeps a copy of
the sequences' state, and the target a copy of the speculation. Messages between the programs of a round keep the copies the same:

    target   verify ── report ─┐                                        ┌─ arrives │ verify
    draft                      └─ arrives │ look up │ leaves ── tokens ─┘

A report says where each sequence stands, and its newest tokens. The tokens of a request that samples bring the distributions that
they were drawn from. Receive buffers are not double-buffered: the sender overwrites one only after its own program, which waited for
the program that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.round import Reports, VerifyOutput
from ssd.decoding.state import Tables
from ssd.decoding.tree import Tree
from ssd.runtime.executor import Executor, Run

Program = Callable[[], Any]

COLUMNS = 3  # of a speculation that is sent, after its tokens: length, hit and q address


class Link:
    """One device: both sides work on the same tables."""

    # Around the programs of a round of the first n slots.

    def on_draft(self, n: int, program: Program) -> Program:
        """The program with its side's messages taken in before it, and packed after it."""
        return program

    def on_target(self, n: int, program: Program) -> Program:
        """The same for the target's."""
        return program

    def send_speculation(self, n: int, drafted: Run) -> Run:
        """Returns the run that the verification has to wait for."""
        return drafted

    def send_outcome(self, n: int, verified: Run) -> Run:
        """Returns the run that the draft's next program has to wait for."""
        return verified

    def path(self, n: int, output: VerifyOutput) -> Tensor:
        """[n, T] the accepted path, where the draft can read it."""
        return output.path

    # When a sequence begins and ends.

    def stage(self) -> None:
        """The target has staged a prompt. Called `alone`."""

    def enter(self, slot: int, output: VerifyOutput) -> None:
        """The target's state has a new sequence in this slot, its prompt stored. Called `alone`."""

    def retire(self, slot: int) -> None:
        """The slot is free, and its pages soon another sequence's."""


class TwoDevices(Link):
    """Each side has tables of its own. tree: the shape of the speculation.

    The parity of the target's speculation stays 0, and q has one address there: only the distributions that were handed out are sent,
    from either half of the draft's.
    """

    def __init__(self, target: Tables, draft: Tables, tree: Tree, executor: Executor) -> None:
        self.target = target
        self.draft = draft
        self._executor = executor
        slots = len(target.state.done)
        here, there = target.state.done.device, draft.state.done.device
        self._report = torch.zeros(slots, Reports.width(tree.nodes), dtype=torch.int32, device=there)
        Reports.unpack(self._report).done.fill_(1)
        self._path = torch.zeros(slots, tree.nodes, dtype=torch.int32, device=there) if tree.needs_compaction else None
        self._speculation = torch.zeros(slots, tree.nodes - 1 + COLUMNS, dtype=torch.int32, device=here)
        self._q: list[Tensor] = []  # [S, K, Vd] and [S, K, STATS] float32, on the target's device

    def on_draft(self, n: int, program: Program) -> Program:
        def run() -> list[Tensor]:
            self.outcome_arrives(n)
            program()
            return self.speculation_leaves(n)

        return run

    def on_target(self, n: int, program: Program) -> Program:
        def run() -> Any:
            self.speculation_arrives(n)
            return program()

        return run

    def send_speculation(self, n: int, drafted: Run) -> Run:
        into = [table[:n] for table in (self._speculation, *self._q)]
        return self._executor.send("draft", zip(into, drafted.value, strict=True), n)

    def send_outcome(self, n: int, verified: Run) -> Run:
        output: VerifyOutput = verified.value
        tables = [(self._report[:n], output.report)]
        if self._path is not None:
            tables.append((self._path[:n], output.path))
        return self._executor.send("target", tables, n)

    def path(self, n: int, output: VerifyOutput) -> Tensor:
        assert self._path is not None
        return self._path[:n]

    def outcome_arrives(self, n: int) -> None:
        """The draft's state becomes what the target's is."""
        state, report = self.draft.state.first(n), Reports.unpack(self._report[:n])
        offset = torch.arange(1 - report.newest.shape[1], 1, dtype=torch.int64, device=report.newest.device)
        state.tokens.scatter_(1, (report.length[:, None] + offset).clamp_min(0), report.newest)
        state.length.copy_(report.length)
        state.last_token.copy_(report.newest[:, -1])
        state.done.copy_(report.done)
        outcome = torch.stack([report.accepted, report.newest[:, -1]], dim=1)
        state.outcome.copy_(outcome[:, None].expand_as(state.outcome))

    def speculation_leaves(self, n: int) -> list[Tensor]:
        """The tables to send: the speculation, and where q is held the distributions handed out."""
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
        """The target's speculation becomes what the draft's is."""
        speculation, arrived = self.target.speculation.first(n), self._speculation[:n]
        tokens, (length, hit, address) = arrived[:, :-COLUMNS], arrived[:, -COLUMNS:].unbind(1)
        speculation.tokens.copy_(tokens)
        speculation.length.copy_(length)
        speculation.hit.copy_(hit)
        speculation.q_address.copy_(address)
        if speculation.q_logits is not None and speculation.q_stats is not None:
            for q, found in zip((speculation.q_logits, speculation.q_stats), self._q, strict=True):
                q[:, 0, 0].copy_(found[:n])

    def stage(self) -> None:
        self._hold_distributions()
        there, here = (side.staging.by_slot() for side in (self.draft, self.target))
        self._executor.send("target", zip(there, here, strict=True), 1)

    def enter(self, slot: int, output: VerifyOutput) -> None:
        there, here = (side.state.only(slot).by_slot() for side in (self.draft, self.target))
        report = (self._report[slot : slot + 1], output.report)
        self._executor.send("target", [*zip(there, here, strict=True), report], 1)

    def retire(self, slot: int) -> None:
        with self._executor.alone(), self._executor.on("draft"):
            self.draft.state.retire(slot)
            report = self._report[slot : slot + 1]
            report.fill_(0)
            Reports.unpack(report).done.fill_(1)

    def _hold_distributions(self) -> None:
        """Have room for q on the target's side too, once the draft's holds it."""
        drawn, speculation = self.draft.speculation.q_logits, self.target.speculation
        if drawn is None or self._q:
            return
        vocab_size = drawn.shape[-1]
        speculation.hold_distributions(0, vocab_size)
        self._q = [
            torch.empty(*speculation.tokens.shape, width, dtype=torch.float32, device=self._speculation.device)
            for width in (vocab_size, ops.STATS)
        ]
