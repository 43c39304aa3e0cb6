"""What plain speculative decoding asks of a drafter."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ssd.decoding.state import DraftTables


class Drafter(Protocol):
    """Proposes the next speculation of every slot. tables: the draft's side of a round."""

    @property
    def tables(self) -> DraftTables: ...

    @property
    def keeps(self) -> bool:
        """Whether an accepted path has to be moved in the draft's K/V, by `keep`."""

    def stage(self, samples: bool) -> None:
        """A prompt is staged. samples: whether its request does. Called `alone`."""

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of tokens start..stop−1 of the staged prompt, which is to get this slot."""

    def draft(self, n: int) -> None:
        """The program that drafts the next speculation of the first n slots, after their newest committed token."""

    def keep(self, n: int, path: Tensor) -> None:
        """The program that makes an accepted path contiguous; path: [n, T] int32 from `ops.verify`."""
