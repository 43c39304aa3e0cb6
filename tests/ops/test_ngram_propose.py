"""ngram_propose: the tokens after the longest earlier match of a sequence's ending, compared with the oracle and by example."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from ops.cases import generator, i32, ints, ngram_propose
from ssd import ops


def propose(sequence: list[int], lookahead: int, stale: int = 0) -> list[int]:
    """Propose for one sequence, followed by `stale` old tokens that do not belong to it."""
    tokens = i32([sequence + [sequence[-1]] * stale])
    spec_tokens, spec_len = ngram_propose(tokens, i32([len(sequence) - 1]), lookahead)
    assert spec_tokens.shape == (1, lookahead) and spec_tokens.dtype == spec_len.dtype == torch.int32
    count = int(spec_len)
    assert spec_tokens[0, count:].tolist() == [0] * (lookahead - count)
    return spec_tokens[0, :count].tolist()


@given(
    sequence=st.one_of(
        st.lists(st.integers(0, 1), min_size=1, max_size=80),  # long matches, and many of them
        st.lists(st.integers(0, 5), min_size=1, max_size=80),
        st.lists(st.integers(0, 9), min_size=1, max_size=30).map(lambda part: part * 4),
        st.builds(lambda a, b: a + b + a, *[st.lists(st.integers(0, 9), min_size=1, max_size=40)] * 2),
    ),
    lookahead=st.integers(0, 8),
    stale=st.integers(0, 5),
)
def test_proposals_equal_the_oracles(sequence: list[int], lookahead: int, stale: int) -> None:
    assert propose(sequence, lookahead, stale) == reference.ngram_propose(sequence, lookahead)


@pytest.mark.parametrize("period", [1, 2, 3, 17, 700])
@pytest.mark.parametrize("length", [1_500, 4_000])
def test_a_long_periodic_sequence_continues_its_period(period: int, length: int) -> None:
    """The match is as long as the sequence less one period."""
    sequence = (torch.arange(length) % period).tolist()
    assert propose(sequence, 5) == sequence[length - period :][:5]


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_of_several_long_matches_wins(seed: int) -> None:
    """Copies of the last 10 to 1400 tokens are placed at random positions, each followed by a number of its own."""
    g = generator(seed)
    ending = ints(100, 120, (1_400,), g).tolist()
    sequence: list[int] = []
    sizes = ints(10, 1_400, (6,), g).tolist()
    for i, size in enumerate(sizes):
        sequence += ints(200, 220, (int(ints(1, 300, (), g)),), g).tolist() + ending[-size:] + [i, 300 + i]
    longest = max(range(6), key=lambda i: (sizes[i], i))
    assert propose([*sequence, 400, *ending], 2) == [longest, 300 + longest]


def test_the_longest_match_wins() -> None:
    assert propose([1, 2, 3, 7, 2, 3, 8, 9, 3, 4, 1, 2, 3], 2) == [7, 2]


def test_of_equally_long_matches_the_most_recent_wins() -> None:
    assert propose([5, 1, 6, 1, 7, 1], 1) == [7]


def test_a_proposal_ends_at_the_end_of_the_sequence() -> None:
    assert propose([4, 1, 2, 1], 5) == [2, 1]


def test_a_match_may_overlap_the_ending() -> None:
    assert propose([3, 3, 3, 3], 4) == [3]


def test_nothing_is_proposed_without_a_match() -> None:
    assert propose([1, 2, 3, 4], 3) == []


def test_nothing_is_proposed_after_a_first_token() -> None:
    assert propose([1], 3) == []


def test_tokens_after_the_end_of_the_sequence_are_not_read() -> None:
    tokens = i32([[1, 2, 3, 9, 3, 8, 3]])
    spec_tokens, spec_len = ngram_propose(tokens, i32([2]), 3)
    assert (spec_tokens.tolist(), spec_len.tolist()) == ([[0, 0, 0]], [0])


def test_only_missed_slots_get_proposals_and_none_gets_more_than_its_room() -> None:
    """A hit, a miss with room for one of two tokens, and a miss without a match."""
    tokens = i32([[1, 2, 3, 1], [1, 2, 3, 1], [1, 2, 3, 4]])
    spec_tokens, spec_len, q_address = i32([[7, 8]] * 3), i32([2, 1, 2]), i32([5, 6, 6])
    missed = torch.tensor([0, 1, 1], dtype=torch.uint8)
    ops.ngram_propose(tokens, i32([3, 3, 3]), missed, spec_tokens, spec_len, q_address)
    assert spec_tokens.tolist() == [[7, 8], [2, 3], [0, 0]]
    assert spec_len.tolist() == [2, 1, 0]
    assert q_address.tolist() == [5, -1, -1]


def test_a_sequence_is_matched_only_with_itself() -> None:
    tokens = i32([[1, 2, 1, 0, 0], [3, 4, 5, 0, 0], [6, 7, 8, 6, 7]])
    spec_tokens, spec_len = ngram_propose(tokens, i32([2, 2, 4]), 2)
    assert spec_tokens.tolist() == [[2, 1], [0, 0], [8, 6]]
    assert spec_len.tolist() == [2, 0, 2]
