"""The messages between the two sides of a round. The loops wrap their programs in a link; neither side knows of it.

On one device, both sides work on the same tables, and `Link` sends nothing. On two devices, the draft keeps a copy of the
sequences' state, and the target keeps a copy of the speculation. Messages between the programs of a round keep the copies the
same:

    target   verify ── report ─┐                                        ┌─ arrives │ verify
    draft                      └─ arrives │ look up │ leaves ── tokens ─┘

A report has the length and the newest tokens of each sequence. The tokens of a request that samples come with the distributions
that they were drawn from. Receive buffers are not double-buffered: the sender overwrites one only after its own program, which
waited for the program that read it.
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

COLUMNS = 4  # columns after the tokens of a speculation that is sent: length, hit, q address and bad


class Link:
    """One device: both sides work on the same tables."""

    # Around the programs of a round of the first n slots.

    def on_draft(self, n: int, program: Program) -> Program:
        """The draft's program; before it, the outcome is received, and after it, the speculation is packed."""
        return program

    def on_target(self, n: int, program: Program) -> Program:
        """The target's program; before it, the speculation is received."""
        return program

    def send_speculation(self, n: int, drafted: Run) -> Run:
        """Send the speculation. Returns the run that the verification must wait for."""
        return drafted

    def send_outcome(self, n: int, verified: Run) -> Run:
        """Send the outcome. Returns the run that the draft's next program must wait for."""
        return verified

    def path(self, n: int, output: VerifyOutput) -> Tensor:
        """The accepted path [n, T] int32, on the draft's device."""
        return output.path

    # At the beginning and the end of a sequence.

    def stage(self) -> None:
        """Send the prompt that the target has staged. Called `alone`."""

    def enter(self, slot: int, output: VerifyOutput) -> None:
        """Send a slot's new sequence, whose prompt is stored. Called `alone`."""

    def retire(self, slot: int) -> None:
        """Switch the slot off on the draft's side too: another sequence may soon get its pages."""


class TwoDevices(Link):
    """Two devices: each side has tables of its own. target_side, draft_side: these tables. tree: the shape of the speculation.

    The draft sends only the distributions of the speculation that it hands out, from either half of its q. So the target's q
    has one address, and the parity of the target's speculation stays 0.
    """

    def __init__(self, target_side: Tables, draft_side: Tables, tree: Tree, executor: Executor) -> None:
        self.target_side = target_side
        self.draft_side = draft_side
        self._executor = executor
        slots = len(target_side.state.done)
        target_device, draft_device = target_side.state.done.device, draft_side.state.done.device
        # The receive buffers.
        self._report = torch.zeros(slots, Reports.width(tree.nodes), dtype=torch.int32, device=draft_device)
        Reports.unpack(self._report).done.fill_(1)
        self._path = torch.zeros(slots, tree.nodes, dtype=torch.int32, device=draft_device) if tree.needs_compaction else None
        self._packed_speculation = torch.zeros(slots, tree.nodes - 1 + COLUMNS, dtype=torch.int32, device=target_device)
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
        buffers = [table[:n] for table in (self._packed_speculation, *self._q)]
        return self._executor.send("draft", zip(buffers, drafted.value, strict=True), n)

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
        """Update the draft's state from the report that it received."""
        state, report = self.draft_side.state.first(n), Reports.unpack(self._report[:n])
        offset = torch.arange(1 - report.newest.shape[1], 1, dtype=torch.int64, device=report.newest.device)
        state.tokens.scatter_(1, (report.length[:, None] + offset).clamp_min(0), report.newest)
        state.length.copy_(report.length)
        state.last_token.copy_(report.newest[:, -1])
        state.done.copy_(report.done)
        outcome = torch.stack([report.accepted, report.newest[:, -1]], dim=1)
        state.outcome.copy_(outcome[:, None].expand_as(state.outcome))

    def speculation_leaves(self, n: int) -> list[Tensor]:
        """The tables to send: the speculation and, if q is held, the distributions of its tokens."""
        speculation = self.draft_side.speculation.first(n)
        address = speculation.q_address
        columns = torch.stack([speculation.length, speculation.hit.int(), address.clamp_max(0), speculation.bad], dim=1)
        leaving = [torch.cat([speculation.tokens, columns], dim=1)]
        if speculation.q_logits is not None and speculation.q_stats is not None:
            slot = torch.arange(n, device=address.device)
            row = (speculation.parity * speculation.q_logits.shape[2] + address.clamp_min(0)).long()
            leaving += [q.flatten(1, 2)[slot, row] for q in (speculation.q_logits, speculation.q_stats)]
        return leaving

    def speculation_arrives(self, n: int) -> None:
        """Update the target's speculation from the one that it received."""
        speculation, arrived = self.target_side.speculation.first(n), self._packed_speculation[:n]
        tokens, (length, hit, address, bad) = arrived[:, :-COLUMNS], arrived[:, -COLUMNS:].unbind(1)
        speculation.tokens.copy_(tokens)
        speculation.length.copy_(length)
        speculation.hit.copy_(hit)
        speculation.q_address.copy_(address)
        speculation.bad.copy_(bad)
        if speculation.q_logits is not None and speculation.q_stats is not None:
            for q, received in zip((speculation.q_logits, speculation.q_stats), self._q, strict=True):
                q[:, 0, 0].copy_(received[:n])

    def stage(self) -> None:
        self._hold_distributions()
        destinations, sources = (side.staging.by_slot() for side in (self.draft_side, self.target_side))
        self._executor.send("target", zip(destinations, sources, strict=True), 1)

    def enter(self, slot: int, output: VerifyOutput) -> None:
        destinations, sources = (side.state.only(slot).by_slot() for side in (self.draft_side, self.target_side))
        report = (self._report[slot : slot + 1], output.report)
        self._executor.send("target", [*zip(destinations, sources, strict=True), report], 1)

    def retire(self, slot: int) -> None:
        with self._executor.alone(), self._executor.on("draft"):
            self.draft_side.state.retire(slot)
            report = self._report[slot : slot + 1]
            report.fill_(0)
            Reports.unpack(report).done.fill_(1)

    def _hold_distributions(self) -> None:
        """Allocate q and its receive buffers on the target's side, once the draft's side holds q."""
        draft_q, speculation = self.draft_side.speculation.q_logits, self.target_side.speculation
        if draft_q is None or self._q:
            return
        vocab_size = draft_q.shape[-1]
        speculation.hold_distributions(0, vocab_size)
        self._q = [
            torch.empty(*speculation.tokens.shape, width, dtype=torch.float32, device=self._packed_speculation.device)
            for width in (vocab_size, ops.STATS)
        ]
