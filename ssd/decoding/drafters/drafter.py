"""The interface of a drafter for plain speculative decoding."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ssd.decoding.prefill import Admitted
from ssd.decoding.state import DraftTables


class Drafter(Protocol):
    """Proposes the next speculation of every slot. tables: the tables of the draft's side."""

    @property
    def tables(self) -> DraftTables: ...

    @property
    def needs_compaction(self) -> bool:
        """Whether `compact` has to move the K/V of an accepted path."""

    def stage(self, request: Admitted) -> None:
        """Prepare for a request whose prompt is staged. Called `alone`."""

    def reach(self, tokens: int) -> int:
        """The number of tokens of a sequence whose K/V the draft stores at most, if its staged prompt has `tokens` tokens."""

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of tokens start..stop−1 of the staged prompt, which will get this slot."""

    def draft(self, n: int) -> None:
        """The program that drafts the next speculation of the first n slots, after their newest committed token."""

    def compact(self, n: int, path: Tensor) -> None:
        """The program that makes the K/V of an accepted path contiguous. path: [n, T] int32 from `ops.verify`."""
