"""What a round leaves for the host, and how a failing draft is told apart from a failing target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from ssd.runtime.executor import Reading, Run


@dataclass
class Decided:
    """What a verification leaves on the device, until the next one."""

    logits: Tensor  # [n, T, V] float32, p's
    path: Tensor  # [n, T] int32, the row behind each token committed now, −1 beyond them
    report: Tensor  # [n, COUNTS + nodes] int32, a row a slot, see `SlotReport`

    LENGTH: ClassVar = 0  # columns of a report
    DONE: ClassVar = 1
    ACCEPTED: ClassVar = 2
    COUNTS: ClassVar = 5  # before the newest tokens


@dataclass
class Verification:
    """A prompt's prefill or a round's verification under way: its report comes to the host by itself."""

    decided: Decided
    report: Reading

    @cached_property
    def slots(self) -> list[SlotReport]:
        """What it left, slot by slot; waits for it."""
        return [SlotReport.of(row) for row in self.report.tolist()]


@dataclass(frozen=True)
class SlotReport:
    """One slot behind a verification. accepted: of the `proposed` tokens, as verified, whether or not there was room for all; hit:
    whether they came from the speculation cache; newest: the last tokens of the sequence, in order, as many as a round commits at
    most. Behind a prompt's prefill accepted is −1: nothing was guessed about it."""

    length: int
    done: bool
    accepted: int
    proposed: int
    hit: bool
    newest: list[int]

    @classmethod
    def of(cls, row: list[int]) -> SlotReport:
        length, done, accepted, proposed, hit, *newest = row
        return cls(length, bool(done), accepted, proposed, bool(hit), newest)


@dataclass
class Round:
    """One round: its verification, and what the draft did for it.

    verified: when the verification ran. draft: when a speculation was prepared, hidden ("ssd") or not ("sd"). looked_up: when the outcome
    was looked up and, if it was missed, drafted for, in "ssd"; neural: whether misses were drafted, in the round before and in this one.
    branches: prepared for each sequence. seen: [n, 4] of the outcome looked up at the beginning of the round (after a hit, spec_len, k,
    the next token's rank among the guesses for k), −1 where there was none.
    """

    verification: Verification
    verified: Run
    draft: Run | None = None
    looked_up: Run | None = None
    neural: tuple[bool, bool] = (True, True)
    branches: int = 0
    seen: Reading | None = None

    def forget_draft(self) -> None:
        """It failed: what it had begun for this round is not asked for."""
        self.draft = self.looked_up = self.seen = None

    @cached_property
    def outcomes(self) -> list[list[int]]:
        """`seen` on the host, a row a slot; none where nothing was looked up in a cache. Waits for it."""
        return self.seen.tolist() if self.seen is not None else []


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
