"""The results of a round for the host, and the error of a failing draft, which differs from a failing target's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.state import SlotTables
from ssd.runtime.executor import Executor, Reading, Run


@dataclass
class VerifyOutput(SlotTables):
    """The results of a verification on the device; the next one overwrites them."""

    logits: Tensor  # [n, T, V] float32, p's
    path: Tensor  # [n, T] int32, the row that decided each committed token, −1 after the last
    report: Tensor  # [n, Reports.width] int32, a row per slot, packed as `Reports` says

    @classmethod
    def allocate(cls, slots: int, nodes: int, newest: int, vocab_size: int, device: torch.device) -> VerifyOutput:
        """nodes: T. newest: number of newest tokens in a report. vocab_size: V."""
        return cls(
            logits=torch.empty(slots, nodes, vocab_size, dtype=torch.float32, device=device),
            path=torch.full((slots, nodes), -1, dtype=torch.int32, device=device),
            report=torch.zeros(slots, Reports.width(newest), dtype=torch.int32, device=device),
        )

    def report_committed(self, tokens: Tensor) -> None:
        """Report sequences that go on where they were. tokens: [n, tokens] int32, all of each sequence."""
        report, length = Reports.unpack(self.report), tokens.shape[1] - 1
        report.length.fill_(length)
        newest = report.newest[:, -tokens.shape[1] :]
        report.newest.copy_(tokens[:, :1].expand_as(report.newest))  # before the first token of a short one
        newest.copy_(tokens[:, -newest.shape[1] :])


@dataclass
class Reports:
    """The reports of a verification on the device, column by column; see `SlotReport`. `ops.verify` writes them packed in one
    table, in the order of these fields (csrc/common/report.h)."""

    length: Tensor  # [n]
    done: Tensor  # [n]
    accepted: Tensor  # [n]
    proposed: Tensor  # [n]
    hit: Tensor  # [n]
    bad: Tensor  # [n]
    newest: Tensor  # [n, T]

    @staticmethod
    def width(nodes: int) -> int:
        """Columns of a packed report, for a verification of T nodes."""
        return 6 + nodes

    @classmethod
    def unpack(cls, report: Tensor) -> Reports:
        """Views of a packed table, [n, width]."""
        length, done, accepted, proposed, hit, bad = report[:, :6].unbind(1)
        return cls(length, done, accepted, proposed, hit, bad, newest=report[:, 6:])


@dataclass(frozen=True)
class SlotReport:
    """One slot after a verification.

    length: number of tokens whose K/V is stored, one less than the sequence has. done: whether the sequence has ended. failed:
    whether it has ended because the target's logits for its next token are not finite. accepted: number of the `proposed`
    tokens that the target accepted, even if an end-of-sequence token cut them; −1 after a prefill. hit: whether the proposed
    tokens came from the speculation cache. bad: whether logits of the draft that are not finite shortened the speculation or
    took guesses away. newest: the last tokens of the sequence, in order, as many as a round commits at most.
    """

    length: int
    done: bool
    failed: bool
    accepted: int
    proposed: int
    hit: bool
    bad: bool
    newest: list[int]

    @property
    def missed(self) -> bool:
        """Whether the proposed tokens came from a fallback."""
        return self.proposed > 0 and not self.hit

    @classmethod
    def of(cls, row: list[int]) -> SlotReport:
        """row: one slot's row of the packed `Reports`, on the host."""
        length, done, accepted, proposed, hit, bad, *newest = row
        return cls(length, bool(done), done == ops.FAILED, accepted, proposed, bool(hit), bool(bad), newest)


@dataclass
class Verification:
    """A prompt's prefill or a round's verification in flight. The copy of its report to the host has been started."""

    output: VerifyOutput
    report: Reading

    @classmethod
    def of(cls, verified: Run, executor: Executor) -> Verification:
        """verified: a run on the target's lane whose program returns a VerifyOutput."""
        output: VerifyOutput = verified.value
        return cls(output, executor.read("target", output.report))

    @cached_property
    def slots(self) -> list[SlotReport]:
        """The reports, slot by slot. Blocks until they are on the host."""
        return [SlotReport.of(row) for row in self.report.tolist()]


@dataclass(frozen=True)
class Seen:
    """One outcome, as a look-up saw it. `ops.rank_outcomes` writes these fields in a row.

    after_hit: whether the verified speculation came from the cache. spec_len: its number of tokens. k: the accepted count.
    rank: from 0, the next token's among the draft's guesses for k.
    """

    after_hit: bool
    spec_len: int
    k: int
    rank: int

    @classmethod
    def of(cls, row: list[int]) -> Seen | None:
        """row: one slot's row, on the host; −1 where there was no look-up. Returns None there."""
        after_hit, spec_len, k, rank = row
        return cls(bool(after_hit), spec_len, k, rank) if k >= 0 else None


@dataclass
class Round:
    """One round: its verification, and the draft's work for it.

    verified: the run of the verification. drafting: the run that drafted, beside the verification ("ssd") or before it ("sd").
    looked_up: the run of the look-up and its fallback ("ssd"). neural, neural_before: whether the draft model drafted for
    misses, in this round and in the round before. budget: number of branches per sequence. draft_context: the length from
    which on a sequence has no branches; None if no sequence is as long. seen: [n, 4], the rows of `Seen`, about the outcomes
    that were looked up at the beginning of the round.
    """

    verification: Verification
    verified: Run
    drafting: Run | None = None
    looked_up: Run | None = None
    neural: bool = True
    neural_before: bool = True
    budget: int = 0
    draft_context: int | None = None
    seen: Reading | None = None

    def branches(self, length: int) -> int:
        """The number of branches that were drafted for a sequence whose K/V held `length` tokens before the round."""
        return self.budget if self.draft_context is None or length < self.draft_context else 0

    def forget_draft(self) -> None:
        """The draft failed: nobody may wait for its runs of this round."""
        self.drafting = self.looked_up = self.seen = None

    @cached_property
    def outcomes(self) -> list[Seen | None]:
        """`seen` on the host, slot by slot; empty without a speculation cache. Blocks until it is on the host."""
        return [Seen.of(row) for row in self.seen.tolist()] if self.seen is not None else []

    def rank(self, slot: int) -> int:
        """The rank of the last token that this slot's sequence had committed before the round; −1 where there was no guess."""
        seen = self.outcomes[slot] if self.outcomes else None
        return seen.rank if seen is not None else -1


class DraftFailed(Exception):
    """The draft raised an error; no request is lost. target_work: the prefill or round that the target had already started."""

    def __init__(self, target_work: Verification | Round | None = None) -> None:
        super().__init__("the draft failed")
        self.target_work = target_work

    @classmethod
    @contextmanager
    def guard(cls, target_work: Verification | Round | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise cls(target_work) from error
