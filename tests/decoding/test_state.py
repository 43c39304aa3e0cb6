"""The tables of the draft's side: the look-up cuts a speculation at the end of the draft's context, hit or miss."""

from __future__ import annotations

import pytest
import torch

from ssd.decoding.state import Branches, DraftTables, SequenceState, Speculation

CONTEXT, LOOKAHEAD = 10, 4
CPU = torch.device("cpu")


def looked_up(lengths: list[int], context: int | None, guessed: bool) -> DraftTables:
    """Tables after the look-up of sequences of 64 tokens at most. Each outcome, (2, 5), is in a branch if `guessed`."""
    slots = len(lengths)
    state = SequenceState.allocate(slots, 80, 5, (), CPU)
    tables = DraftTables(
        state,
        SequenceState.allocate(1, 80, 5, (), CPU),
        Speculation.allocate(slots, LOOKAHEAD, CPU),
        Branches.allocate(slots, 1, LOOKAHEAD, 0, CPU),
        context,
    )
    state.length.copy_(torch.tensor(lengths))
    state.max_length.fill_(64)
    state.done.zero_()
    state.outcome.copy_(torch.tensor([2, 5]).expand_as(state.outcome))
    tables.branches.guess.fill_(5)
    tables.branches.guess_node.fill_(2 if guessed else 1)
    tables.first(slots).latch_and_look_up()
    return tables


@pytest.mark.parametrize("guessed", [True, False])
def test_a_hit_and_a_miss_are_cut_at_the_end_of_the_context(guessed: bool) -> None:
    tables = looked_up([1, 6, 7, 8, 9, 10, 11, 61], CONTEXT, guessed)
    assert tables.speculation.length.tolist() == [4, 4, 3, 2, 1, 0, 0, 0]
    assert tables.speculation.hit.tolist() == ([1, 1, 1, 1, 1, 0, 0, 0] if guessed else [0] * 8)


def test_a_sequence_that_fills_the_context_latches_the_length_0() -> None:
    assert looked_up([1, 9, 10, 11], CONTEXT, guessed=True).branches.length.tolist() == [1, 9, 0, 0]
    assert looked_up([1, 9, 10, 11], CONTEXT, guessed=True).idle().tolist() == [0, 0, 1, 1]


def test_without_a_context_only_the_longest_sequence_cuts() -> None:
    tables = looked_up([1, 9, 10, 59, 60, 61, 62], None, guessed=True)
    assert tables.speculation.length.tolist() == [4, 4, 4, 3, 2, 1, 0]
    assert tables.branches.length.tolist() == [1, 9, 10, 59, 60, 61, 62]
    assert tables.speculation.hit.tolist() == [1] * 7
