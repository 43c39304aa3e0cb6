"""The division of the branch budget among accepted counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd.decoding.fanout import Measured, best, geometric, power_law_gains, tables, uniform

lookaheads = st.integers(0, 12)
budgets = st.integers(0, 64)
chances = st.floats(0.01, 0.99)
decays = st.floats(0.1, 4.0)


def hits(probability: Sequence[float], gains: Sequence[Sequence[float]], counts: Sequence[int]) -> float:
    """The probability of a hit: the sum over k of P(k) times the probability that a guess for k hits."""
    return sum(p * sum(gain[:count]) for p, gain, count in zip(probability, gains, counts, strict=False))


def shares(positions: int, budget: int) -> Iterator[tuple[int, ...]]:
    """Every way to divide the whole budget."""
    return (counts for counts in product(range(budget + 1), repeat=positions) if sum(counts) == budget)


# Theorem 12 -------------------------------------------------------------------------------------------------------------------


def test_the_example_of_theorem_12_is_reproduced() -> None:
    """F_k is proportional to 0.8^(k/2) for k < 4, and to 0.8^2 · 0.2^(−1/2) = 1.431 for k = 4. A budget of 8 gives 1.64, 1.47,
    1.31, 1.17 and 2.41."""
    assert geometric(4, 8, acceptance=0.8, decay=1.0) == [2, 2, 1, 1, 2]


@given(lookahead=lookaheads, budget=budgets, acceptance=chances, decay=decays)
def test_theorem_12_uses_the_whole_budget(lookahead: int, budget: int, acceptance: float, decay: float) -> None:
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
    """With a large budget rounding is negligible: F_k / F_0 = α^(k/(1+r)), times (1 − α)^(−1/(1+r)) at the lookahead."""
    counts = geometric(lookahead, 10_000_000, acceptance, decay)
    power = 1 / (1 + decay)
    for k in range(1, lookahead):
        assert counts[k] / counts[0] == pytest.approx(acceptance ** (k * power), abs=1e-4)
    at_lookahead = acceptance ** (lookahead * power) * (1 - acceptance) ** -power
    assert counts[-1] / counts[0] == pytest.approx(at_lookahead, rel=1e-3, abs=1e-4)


def test_a_single_guess_goes_to_the_largest_share() -> None:
    assert geometric(2, 1, acceptance=0.2, decay=1.0) == [1, 0, 0]
    assert geometric(2, 1, acceptance=0.9, decay=1.0) == [0, 0, 1]


# Uniform ----------------------------------------------------------------------------------------------------------------------


@given(lookahead=lookaheads, budget=budgets)
def test_uniform_fan_outs_differ_by_at_most_one(lookahead: int, budget: int) -> None:
    counts = uniform(lookahead, budget)
    assert (len(counts), sum(counts)) == (lookahead + 1, budget)
    assert max(counts) - min(counts) <= 1


def test_the_remainder_of_uniform_goes_to_the_smallest_counts() -> None:
    assert uniform(4, 8) == [2, 2, 2, 1, 1]


# The best fan-out for known curves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", range(1, 5))
@pytest.mark.parametrize("budget", range(7))
@given(data=st.data())
def test_best_hits_at_least_as_often_as_any_division_of_the_budget(positions: int, budget: int, data: st.DataObject) -> None:
    """For random probabilities and concave curves, whose increments never rise; some stretches are flat."""
    chance = st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 1.0])
    probability = data.draw(st.lists(chance, min_size=positions, max_size=positions))
    curve = st.lists(chance, min_size=budget, max_size=budget).map(lambda gains: sorted(gains, reverse=True))
    gains = data.draw(st.lists(curve, min_size=positions, max_size=positions))
    counts = best(probability, gains, budget)
    assert sum(counts) == budget
    optimum = max(hits(probability, gains, counts) for counts in shares(positions, budget))
    assert hits(probability, gains, counts) == pytest.approx(optimum, abs=1e-12)


def test_among_equal_gains_the_smaller_count_gets_the_guess() -> None:
    assert best([0.5, 0.5], [[0.3, 0.2], [0.3, 0.2]], 1) == [1, 0]


def test_the_rounded_closed_form_is_not_optimal_in_its_own_model() -> None:
    """Theorem 12 rounded to whole guesses, at K = 4, B = 8, α = 0.8, r = 1 and 1 − h(F) = F^(−1)."""
    probability = [0.8**k * 0.2 for k in range(4)] + [0.8**4]
    gains = [power_law_gains(8, first_miss=1.0, decay=1.0).tolist()] * 5
    optimum = max(shares(5, 8), key=lambda counts: hits(probability, gains, counts))
    assert hits(probability, gains, optimum) == pytest.approx(0.487, abs=5e-4)
    assert hits(probability, gains, geometric(4, 8, acceptance=0.8, decay=1.0)) == pytest.approx(0.385, abs=5e-4)


@given(budget=st.integers(1, 64), first_miss=chances, decay=decays)
def test_the_power_laws_increments_add_up_to_it(budget: int, first_miss: float, decay: float) -> None:
    gains = power_law_gains(budget, first_miss, decay)
    assert gains.cumsum().tolist() == pytest.approx([1 - first_miss * count**-decay for count in range(1, budget + 1)])


# Tables -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fan_out", ["geometric", "uniform", "measured"])
@given(lookahead=st.integers(1, 12), budget=st.integers(1, 64))
def test_every_row_of_a_table_divides_the_budget_within_the_speculation(fan_out: str, lookahead: int, budget: int) -> None:
    table = tables(fan_out, lookahead, budget)
    assert table.shape == (2, lookahead + 1, lookahead + 1)
    assert bool((table >= 0).all())
    assert bool((table.sum(-1) == budget).all())
    for spec_len in range(lookahead + 1):
        assert not table[:, spec_len, spec_len + 1 :].any()


@pytest.mark.parametrize("fan_out", [geometric, uniform])
def test_a_row_of_a_table_is_the_fan_out_of_its_length(fan_out: Callable[[int, int], list[int]]) -> None:
    table = tables(fan_out.__name__, 4, 8)
    for spec_len in range(5):
        assert table[0, spec_len, : spec_len + 1].tolist() == fan_out(spec_len, 8)
    assert table[0].equal(table[1])


def test_for_a_shorter_speculation_the_last_outcome_gets_the_rest_of_an_explicit_fan_out() -> None:
    table = tables([3, 1, 0, 4], 3, 8)
    expected = [[8, 0, 0, 0], [3, 5, 0, 0], [3, 1, 4, 0], [3, 1, 0, 4]]
    assert table.tolist() == [expected, expected]


# Measured ---------------------------------------------------------------------------------------------------------------------


@st.composite
def measurements(draw: st.DrawFn) -> Measured:
    """Any measurements, including the rank beyond the budget."""
    lookahead, budget = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    measured, dice = Measured(lookahead, budget), random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.sampled_from([0, 1, 7, 300]))):
        spec_len = dice.randint(0, lookahead)
        measured.observe(
            dice.random() < 0.5, spec_len, dice.randint(0, spec_len), dice.choice((0, 1, budget, 1000, dice.randrange(budget)))
        )
    return measured


@given(measured=measurements())
def test_the_probabilities_of_all_accepted_counts_add_up_to_one(measured: Measured) -> None:
    for after_hit, spec_len in product((False, True), range(measured.lookahead + 1)):
        probability = measured.probability(after_hit, spec_len)
        assert len(probability) == spec_len + 1
        assert min(probability) >= 0
        assert sum(probability) == pytest.approx(1)


@given(measured=measurements())
def test_a_measured_curve_never_rises(measured: Measured) -> None:
    for spec_len in range(measured.lookahead + 1):
        for gains in measured.gains(spec_len):
            assert len(gains) == measured.budget
            assert gains == sorted(gains, reverse=True)
            assert min(gains) >= 0
            assert sum(gains) <= 1 + 1e-12


@given(measured=measurements())
def test_measured_tables_divide_the_budget_within_the_speculation(measured: Measured) -> None:
    table = measured.tables()
    assert bool((table.sum(-1) == measured.budget).all())
    for spec_len in range(measured.lookahead + 1):
        assert not table[:, spec_len, spec_len + 1 :].any()


def test_a_measured_fan_out_begins_at_the_prior() -> None:
    """Acceptance 0.6, and 1 − h(F) = 0.6 / F for every count, both after a hit and after a miss."""
    measured = Measured(3, 8)
    for after_hit in (False, True):
        assert measured.probability(after_hit, 2) == pytest.approx([0.4, 0.6 * 0.4, 0.6**2])
    law = power_law_gains(8, first_miss=0.6, decay=1.0).tolist()
    assert all(gains == pytest.approx(law) for gains in measured.gains(3))
    assert measured.tables().equal(tables("measured", 3, 8))


def test_acceptance_is_measured_separately_after_hits_and_misses() -> None:
    measured, untouched = Measured(3, 8), Measured(3, 8)
    for _ in range(50):
        measured.observe(True, 3, 3, 0)
    assert measured.probability(False, 3) == untouched.probability(False, 3)
    assert measured.probability(True, 3)[3] > untouched.probability(True, 3)[3] + 0.3


def test_a_position_that_was_not_reached_is_not_measured() -> None:
    """If the first token is rejected, nothing is known about the second."""
    measured, untouched = Measured(2, 8), Measured(2, 8)
    for _ in range(50):
        measured.observe(False, 2, 0, 0)
    first, second, both = measured.probability(False, 2)
    assert first > untouched.probability(False, 2)[0] + 0.3
    assert both / (second + both) == pytest.approx(0.6)  # the second token's acceptance, given that the first was accepted


def test_a_rank_beyond_the_budget_counts_as_a_miss() -> None:
    """It still is an outcome, and lowers the value of every guess."""
    beyond, unseen = Measured(2, 4), Measured(2, 4)
    for rank in (4, 5, 1000):
        for _ in range(20):
            beyond.observe(False, 2, 1, rank)
    assert sum(beyond.gains(2)[1]) < 0.5 * sum(unseen.gains(2)[1])


def test_a_completely_accepted_speculation_has_its_own_curve() -> None:
    """Whatever its length. After a rejection the next token has another distribution."""
    measured, unseen = Measured(4, 4), Measured(4, 4)
    for spec_len in (0, 1, 4):
        for _ in range(40):
            measured.observe(False, spec_len, spec_len, 0)
    for spec_len in range(5):
        *rejected, whole = measured.gains(spec_len)
        assert whole[0] > 0.85
        assert rejected == unseen.gains(spec_len)[:-1]


def test_a_rarely_seen_count_borrows_from_similar_counts() -> None:
    measured = Measured(4, 4)
    for _ in range(200):
        measured.observe(False, 4, 0, 2)
    assert measured.gains(4)[3] == pytest.approx(measured.gains(4)[1])  # neither count was seen
    assert sum(measured.gains(4)[3][:3]) > 0.8  # but the third guess is known to be useful


@dataclass(frozen=True)
class Law:
    """The law of outcomes: the acceptance of every position after a miss and after a hit, and each count's probabilities by
    rank."""

    acceptance: tuple[list[float], list[float]]
    ranks: list[list[float]]

    def probability(self, after_hit: bool, spec_len: int) -> list[float]:
        reached, chances = 1.0, []
        for accepted in self.acceptance[after_hit][:spec_len]:
            chances.append(reached * (1 - accepted))
            reached *= accepted
        return [*chances, reached]

    def outcome(self, dice: random.Random, after_hit: bool, spec_len: int) -> tuple[int, int]:
        (k,) = dice.choices(range(spec_len + 1), self.probability(after_hit, spec_len))
        chances = self.curve(spec_len)[k]
        (rank,) = dice.choices(range(len(chances) + 1), [*chances, 1 - sum(chances)])
        return k, rank

    def curve(self, spec_len: int) -> list[list[float]]:
        return [*self.ranks[:spec_len], self.ranks[-1]]

    def hits(self, after_hit: bool, spec_len: int, counts: Sequence[int]) -> float:
        return hits(self.probability(after_hit, spec_len), self.curve(spec_len), counts)


LAWS = {
    "a draft that is mostly right": Law(
        ([0.9, 0.9, 0.9, 0.9], [0.95, 0.95, 0.95, 0.95]),
        [power_law_gains(16, 0.5, 0.8).tolist()] * 4 + [power_law_gains(16, 0.35, 0.9).tolist()],
    ),
    "a draft that is mostly wrong": Law(
        ([0.3, 0.3, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5]),
        [power_law_gains(16, 0.8, 0.5).tolist()] * 4 + [power_law_gains(16, 0.6, 0.5).tolist()],
    ),
    "a first token that is hard": Law(
        ([0.2, 0.9, 0.9, 0.9], [0.3, 0.95, 0.95, 0.95]),
        [power_law_gains(16, 0.7, 0.3).tolist()] + [power_law_gains(16, 0.3, 2.0).tolist()] * 4,
    ),
}


@pytest.fixture(params=LAWS, ids=str)
def law(request: pytest.FixtureRequest) -> Law:
    return LAWS[request.param]


def learned(law: Law, outcomes: int = 3000) -> Measured:
    """A measured fan-out that has seen outcomes of speculations, mostly of full length, after hits and misses."""
    measured, dice = Measured(4, 16), random.Random(0)
    for _ in range(outcomes):
        after_hit, spec_len = dice.random() < 0.6, dice.choice((4,) * 9 + (2,))
        measured.observe(after_hit, spec_len, *law.outcome(dice, after_hit, spec_len))
    return measured


@pytest.mark.parametrize("after_hit", [False, True])
@pytest.mark.parametrize("spec_len", [2, 4])
def test_a_measured_fan_out_hits_almost_as_often_as_the_best(law: Law, after_hit: bool, spec_len: int) -> None:
    counts = learned(law).tables()[int(after_hit), spec_len, : spec_len + 1].tolist()
    optimum = best(law.probability(after_hit, spec_len), law.curve(spec_len), 16)
    assert law.hits(after_hit, spec_len, counts) > law.hits(after_hit, spec_len, optimum) - 0.01


@pytest.mark.parametrize("after_hit", [False, True])
@pytest.mark.parametrize("fixed", [geometric, uniform])
def test_a_measured_fan_out_is_better_than_a_fixed_one(
    law: Law, after_hit: bool, fixed: Callable[[int, int], list[int]]
) -> None:
    counts = learned(law).tables()[int(after_hit), 4].tolist()
    assert law.hits(after_hit, 4, counts) > law.hits(after_hit, 4, fixed(4, 16)) + 0.005
