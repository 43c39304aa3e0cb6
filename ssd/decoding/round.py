"""What a round leaves for the host, and how a failing draft is told apart from a failing target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssd.runtime.executor import Executor, Reading, Run


@dataclass
class VerifyOutput:
    """What a verification leaves on the device, until the next one."""

    logits: Tensor  # [n, T, V] float32, p's
    path: Tensor  # [n, T] int32, the row that decided each token committed now, −1 beyond
    report: Tensor  # [n, Reports.width] int32, a row a slot, packed by `Reports`


@dataclass
class Reports:
    """The reports of a verification on the device, column by column; `SlotReport` says what each means."""

    length: Tensor  # [n]
    done: Tensor  # [n]
    accepted: Tensor  # [n]
    proposed: Tensor  # [n]
    hit: Tensor  # [n]
    newest: Tensor  # [n, T]

    @staticmethod
    def width(nodes: int) -> int:
        """Columns of a packed report, for a verification of T nodes."""
        return 5 + nodes

    def pack(self) -> Tensor:
        """One table, [n, width] int32."""
        columns = (self.length, self.done, self.accepted, self.proposed, self.hit)
        return torch.cat([torch.stack([column.int() for column in columns], dim=1), self.newest], dim=1)

    @classmethod
    def unpack(cls, report: Tensor) -> Reports:
        """Views of a packed table, [n, width]."""
        length, done, accepted, proposed, hit = report[:, :5].unbind(1)
        return cls(length, done, accepted, proposed, hit, newest=report[:, 5:])


@dataclass(frozen=True)
class SlotReport:
    """One slot after a verification. accepted: how many of the `proposed` tokens were verified to hold, whether or not there was room for
    all. hit: whether they came from the speculation cache. newest: the last tokens of the sequence, in order, as many as a round commits
    at most. After a prompt's prefill accepted is −1: nothing was guessed about it."""

    length: int
    done: bool
    accepted: int
    proposed: int
    hit: bool
    newest: list[int]

    @classmethod
    def of(cls, row: list[int]) -> SlotReport:
        """row: of `Reports.pack`."""
        length, done, accepted, proposed, hit, *newest = row
        return cls(length, bool(done), accepted, proposed, bool(hit), newest)


@dataclass
class Verification:
    """A prompt's prefill or a round's verification in flight: its report comes to the host by itself."""

    output: VerifyOutput
    report: Reading

    @classmethod
    def of(cls, verified: Run, executor: Executor) -> Verification:
        """verified: a run of the target's that returns a VerifyOutput."""
        output: VerifyOutput = verified.value
        return cls(output, executor.read("target", output.report))

    @cached_property
    def slots(self) -> list[SlotReport]:
        """The reports, slot by slot; waits for them."""
        return [SlotReport.of(row) for row in self.report.tolist()]


@dataclass(frozen=True)
class Seen:
    """What a look-up saw of one outcome. after_hit: whether the speculation it ends had come from the cache; spec_len: how many tokens
    that had; k: how many of them were accepted; rank: where the next token stood among the draft's guesses for k, from 0 on."""

    after_hit: bool
    spec_len: int
    k: int
    rank: int

    @staticmethod
    def pack(after_hit: Tensor, spec_len: Tensor, k: Tensor, rank: Tensor, looked_up: Tensor) -> Tensor:
        """[n, 4] int64, −1 for slots where nothing was looked up. All arguments: [n]."""
        seen = torch.stack([after_hit.long(), spec_len.long(), k, rank], dim=1)
        return torch.where(looked_up[:, None], seen, -1)

    @classmethod
    def of(cls, row: list[int]) -> Seen | None:
        """row: of `pack`; None where nothing was looked up."""
        after_hit, spec_len, k, rank = row
        return cls(bool(after_hit), spec_len, k, rank) if k >= 0 else None


@dataclass
class Round:
    """One round: its verification, and what the draft did for it.

    verified: when the verification ran. drafting: when a speculation was drafted, hidden ("ssd") or not ("sd"). looked_up: when the
    outcome was looked up and, if it was missed, drafted for, in "ssd". neural, neural_before: whether misses of this round, and of the
    round before, were drafted by the draft model. branches: prepared for each sequence. seen: [n, 4], the rows of `Seen`, about the
    outcome that was looked up at the beginning of the round.
    """

    verification: Verification
    verified: Run
    drafting: Run | None = None
    looked_up: Run | None = None
    neural: bool = True
    neural_before: bool = True
    branches: int = 0
    seen: Reading | None = None

    def forget_draft(self) -> None:
        """The draft failed: nothing it had begun for this round is asked for."""
        self.drafting = self.looked_up = self.seen = None

    @cached_property
    def outcomes(self) -> list[Seen | None]:
        """`seen` on the host, slot by slot; empty where there is no cache to look into. Waits for it."""
        return [Seen.of(row) for row in self.seen.tolist()] if self.seen is not None else []

    def rank(self, slot: int) -> int:
        """The rank of the token that this slot's sequence began the round with; −1 where nothing was guessed."""
        seen = self.outcomes[slot] if self.outcomes else None
        return seen.rank if seen is not None else -1


class DraftFailed(Exception):
    """The draft raised; no request is lost. `begun` is what the target had begun all the same, a prefill or a round."""

    def __init__(self, begun: Verification | Round | None = None) -> None:
        super().__init__("the draft failed")
        self.begun = begun

    @classmethod
    @contextmanager
    def guard(cls, begun: Verification | Round | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise cls(begun) from error
