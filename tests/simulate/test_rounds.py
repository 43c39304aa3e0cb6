"""Simulated rounds against the closed form of the speed model, and outcomes against the decodes they come from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ssd.decoding.speed_model import SsdModel, expected_tokens
from ssd.decoding.stats import Stats
from ssd.errors import SsdError
from ssd.simulate.outcomes import Outcomes
from ssd.simulate.rounds import WARM_UP, Fallback, Setting, Times, simulate

TIMES = Times(verify=10.0, token=9.0, draft=1.5, branch=3.0, exchange=0.5)
OUTCOMES = Outcomes.assumed(64, acceptance=0.7)
ROUNDS, SEED = 400_000, 0
STATS = Stats(
    mode="ssd", rounds=100, mean_acceptance_length=2.0, accepted_per_round=1.0, acceptance_rate=0.5, hit_rate=0.5, hits_per_k={},
    rank_counts={0: 50, 1: 20, 3: 10, 40: 20}, rank_counts_whole={0: 40},
    proposed_counts={0: 10, 2: 90}, accepted_at=[45, 30], t_verify_ms=1.0,
    t_draft_ms=1.0, t_fallback_ms=1.0, hidden_draft_ms=1.0, branches_unused=0, cached_tokens=0, decode_tokens_per_s=1.0,
    time_to_first_token_s=1.0,
)  # fmt: skip


def test_ar_and_sd_equal_the_closed_form() -> None:
    ar, sd = (simulate(each, OUTCOMES, TIMES, ROUNDS, SEED) for each in (Setting("ar"), Setting("sd", lookahead=4)))
    assert (ar.tokens_per_s, ar.tokens_per_round, ar.round_ms) == pytest.approx((1e3 / 9.5, 1.0, 9.5))
    assert sd.round_ms == pytest.approx(10.0 + 4 * 1.5 + 0.5)
    assert sd.tokens_per_round == pytest.approx(expected_tokens(4, 0.7), rel=0.005)
    assert ar.hit_rate is sd.hit_rate is sd.break_even is None


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("fallback", ["neural", "none"])
def test_ssd_equals_the_speed_model_at_its_own_hit_rate(batch: int, fallback: Fallback) -> None:
    """A hit depends on the accepted count of its own sequence alone."""
    setting = Setting("ssd", 4, 12, batch, fallback)
    found = simulate(setting, OUTCOMES, TIMES, ROUNDS, SEED)
    assert found.hit_rate is not None
    after_hit = expected_tokens(4, 0.7)
    after_miss = after_hit if fallback == "neural" else 1.0
    fallback_ms = 4 * 1.5 if fallback == "neural" else 0.0
    busy = max(10.0, 1.5 + 4 * 3.0) + 0.5
    model = SsdModel(found.hit_rate, after_hit, after_miss, busy / 1e3, 0.0, fallback_ms / 1e3, batch)
    assert found.tokens_per_s == pytest.approx(model.tokens_per_s(), rel=0.01)
    assert found.half_width < 0.01 * found.tokens_per_s


def test_a_larger_budget_hits_more_often_and_a_seed_repeats_itself() -> None:
    rates = [simulate(Setting("ssd", 3, budget), OUTCOMES, TIMES, ROUNDS, SEED).hit_rate or 0.0 for budget in (4, 8, 16, 64)]
    assert rates == sorted(rates) and len(set(rates)) == 4
    again = [simulate(Setting("ssd", 3, 8), OUTCOMES, TIMES, 50_000, seed) for seed in (5, 5, 6)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize("batch", [1, 8])
def test_at_the_break_even_ssd_is_as_fast_as_sd(batch: int) -> None:
    slow = replace(TIMES, branch=3.4)
    setting = Setting("ssd", 4, 12, batch)
    found, sd = (
        simulate(setting, OUTCOMES, slow, ROUNDS, SEED),
        simulate(Setting("sd", 4, 0, batch), OUTCOMES, slow, ROUNDS, SEED),
    )
    assert found.break_even is not None and 0 < found.break_even < 1
    tokens = expected_tokens(4, 0.7)
    model = SsdModel(found.break_even, tokens, tokens, (1.5 + 4 * 3.4 + 0.5) / 1e3, 0.0, 4 * 1.5 / 1e3, batch)
    assert model.tokens_per_s() == pytest.approx(sd.tokens_per_s, rel=0.01)
    assert simulate(setting, OUTCOMES, replace(TIMES, branch=30.0), 1000, SEED).break_even is None


def test_the_times_of_sd_may_be_others() -> None:
    setting = Setting("ssd", lookahead=4, budget=8)
    slower, faster = (replace(TIMES, verify=ms) for ms in (20.0, 2.0))
    at = [simulate(setting, OUTCOMES, TIMES, ROUNDS, SEED, rival).break_even for rival in (slower, None, faster)]
    assert at[0] == pytest.approx(0.0, abs=1e-6) and at[1] is not None and at[2] is None


def test_few_rounds_are_enough_for_a_figure() -> None:
    assert math.isfinite(simulate(Setting("ssd", 2, 3), OUTCOMES, TIMES, 1, SEED).tokens_per_s)
    assert WARM_UP > 0


def test_recorded_outcomes_are_those_of_the_decode() -> None:
    outcomes = Outcomes.recorded([STATS, STATS])
    assert outcomes.acceptance == pytest.approx((0.5, 30 / 45))  # ten rounds in a hundred had nothing to accept
    assert outcomes.after_rejection[:4] == pytest.approx((1 / 6, 1 / 2, 1 / 2, 2 / 3))
    assert outcomes.after_rejection[-1] == 1.0 and len(outcomes.after_rejection) == 41
    assert outcomes.after_whole == (1.0,)
    assert Outcomes.recorded([replace(STATS, rank_counts_whole={})]).after_whole == pytest.approx(
        Outcomes.recorded([replace(STATS, rank_counts_whole=STATS.rank_counts)]).after_rejection
    )
    np.testing.assert_allclose(outcomes.accepted(2), [0.5, 0.5 * 15 / 45, 0.5 * 30 / 45])
    np.testing.assert_allclose(outcomes.accepted(3).sum(), 1.0)


def test_a_decode_without_outcomes_is_refused() -> None:
    for empty in ([], [replace(STATS, rank_counts={})], [replace(STATS, proposed_counts={0: 5}, accepted_at=[])]):
        with pytest.raises(SsdError, match="no decode in mode 'ssd' with outcomes"):
            Outcomes.recorded(empty)
