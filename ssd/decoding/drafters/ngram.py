"""Speculation without a draft model: tokens that followed the same words earlier (Saxena 2023, prompt lookup decoding)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.prefill import Admitted
from ssd.decoding.state import DraftTables, SequenceState, Speculation


def propose_ngram(state: SequenceState, speculation: Speculation) -> None:
    """Give every miss the tokens that followed the longest earlier match of its sequence's ending.

    They are not drawn: each has q = δ, see `Speculation.q_address`.
    """
    tokens, length = ops.ngram_propose(state.tokens, state.length, speculation.lookahead)
    missed = speculation.hit == 0
    speculation.tokens.copy_(torch.where(missed[:, None], tokens, speculation.tokens))
    speculation.length.copy_(torch.where(missed, torch.minimum(length, speculation.length), speculation.length))
    speculation.q_address.masked_fill_(missed, -1)


class NgramDrafter:
    """A `Drafter` that proposes n-grams, for the sequences of `tables`."""

    needs_compaction = False

    def __init__(self, tables: DraftTables) -> None:
        self.tables = tables

    def stage(self, request: Admitted) -> None:
        """N-grams are not drawn: there is no distribution to hold."""

    def store(self, slot: int, start: int, stop: int) -> None:
        """N-grams need no K/V."""

    def draft(self, n: int) -> None:
        tables = self.tables.first(n)
        tables.latch_and_look_up()
        propose_ngram(tables.state, tables.speculation)

    def compact(self, n: int, path: Tensor) -> None:
        """N-grams have no K/V to move."""
