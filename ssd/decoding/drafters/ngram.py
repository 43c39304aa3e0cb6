"""Speculation without a draft model: tokens that followed the same words earlier (Saxena 2023, prompt lookup decoding)."""

from __future__ import annotations

from torch import Tensor

from ssd import ops
from ssd.decoding.prefill import Admitted
from ssd.decoding.state import DraftTables


def propose_ngram(tables: DraftTables) -> None:
    """Give every miss the tokens that followed the longest earlier match of its sequence's ending.

    They are not drawn: each has q = δ, see `Speculation.q_address`.
    """
    state, speculation = tables.state, tables.speculation
    ops.ngram_propose(
        state.tokens, state.length, tables.branches.missed, speculation.tokens, speculation.length, speculation.q_address
    )


class NgramDrafter:
    """A `Drafter` that proposes n-grams, for the sequences of `tables`."""

    needs_compaction = False

    def __init__(self, tables: DraftTables) -> None:
        self.tables = tables

    def stage(self, request: Admitted) -> None:
        """N-grams are not drawn: there is no distribution to hold."""

    def reach(self, tokens: int) -> int:
        return 0

    def store(self, slot: int, start: int, stop: int) -> None:
        """N-grams need no K/V."""

    def draft(self, n: int) -> None:
        tables = self.tables.first(n)
        tables.latch_and_look_up()
        propose_ngram(tables)

    def compact(self, n: int, path: Tensor) -> None:
        """N-grams have no K/V to move."""
