"""The budget of branches, shared among accepted counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd.decoding.fanout import geometric, tables

lookaheads = st.integers(0, 12)
budgets = st.integers(0, 64)
chances = st.floats(0.01, 0.99)
decays = st.floats(0.1, 4.0)


def test_theorem_12_s_example() -> None:
    """F_k proportional to 0.8^(k/2) for k < 4, and to 0.8^2 · 0.2^(−1/2) = 1.431 for k = 4: of 8, 1.64, 1.47, 1.31, 1.17 and 2.41."""
    assert geometric(4, 8, acceptance=0.8, decay=1.0) == [2, 2, 1, 1, 2]


@given(lookahead=lookaheads, budget=budgets, acceptance=chances, decay=decays)
def test_the_whole_budget_is_handed_out(lookahead: int, budget: int, acceptance: float, decay: float) -> None:
    counts = geometric(lookahead, budget, acceptance, decay)
    assert len(counts) == lookahead + 1
    assert sum(counts) == budget
    assert min(counts) >= 0


@given(lookahead=st.integers(2, 12), budget=budgets, acceptance=chances, decay=decays)
def test_a_likelier_rejection_has_no_fewer_guesses(lookahead: int, budget: int, acceptance: float, decay: float) -> None:
    """P(k) = α^k (1 − α) falls with k below the lookahead."""
    counts = geometric(lookahead, budget, acceptance, decay)[:-1]
    assert counts == sorted(counts, reverse=True)


@given(lookahead=st.integers(1, 8), acceptance=chances, decay=decays)
def test_shares_follow_theorem_12(lookahead: int, acceptance: float, decay: float) -> None:
    """With a large budget rounding does not show: F_k / F_0 = α^(k/(1+r)), and at the lookahead (1 − α)^(−1/(1+r)) times that."""
    counts = geometric(lookahead, 10_000_000, acceptance, decay)
    power = 1 / (1 + decay)
    for k in range(1, lookahead):
        assert counts[k] / counts[0] == pytest.approx(acceptance ** (k * power), abs=1e-4)
    at_lookahead = acceptance ** (lookahead * power) * (1 - acceptance) ** -power
    assert counts[-1] / counts[0] == pytest.approx(at_lookahead, rel=1e-3, abs=1e-4)


def test_one_guess_goes_to_the_largest_share() -> None:
    assert geometric(2, 1, acceptance=0.2, decay=1.0) == [1, 0, 0]
    assert geometric(2, 1, acceptance=0.9, decay=1.0) == [0, 0, 1]


@given(lookahead=st.integers(1, 12), budget=st.integers(1, 64))
def test_every_row_of_a_table_hands_out_the_budget_within_the_speculation(lookahead: int, budget: int) -> None:
    table = tables("geometric", lookahead, budget)
    assert table.shape == (2, lookahead + 1, lookahead + 1)
    assert bool((table >= 0).all())
    assert bool((table.sum(-1) == budget).all())
    for spec_len in range(lookahead + 1):
        assert not table[:, spec_len, spec_len + 1 :].any()


def test_a_row_of_the_geometric_table_is_that_of_its_own_length() -> None:
    table = tables("geometric", 4, 8)
    for spec_len in range(5):
        assert table[0, spec_len, : spec_len + 1].tolist() == geometric(spec_len, 8)
    assert table[0].equal(table[1])


def test_an_explicit_fan_out_gives_a_shorter_speculation_s_rest_to_its_last_outcome() -> None:
    table = tables([3, 1, 0, 4], 3, 8)
    expected = [[8, 0, 0, 0], [3, 5, 0, 0], [3, 1, 4, 0], [3, 1, 0, 4]]
    assert table.tolist() == [expected, expected]
