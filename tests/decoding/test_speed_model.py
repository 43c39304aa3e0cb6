"""The speed model compared with explicit sums and with simulated rounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd.decoding.speed_model import SsdModel, ar_tokens_per_s, expected_tokens, sd_tokens_per_s


@given(spec_len=st.integers(0, 20), acceptance=st.floats(0.0, 1.0))
def test_expected_tokens_are_a_sum_of_acceptance_probabilities(spec_len: int, acceptance: float) -> None:
    """Token i + 1 of a round is committed when i proposals in a row are accepted."""
    assert expected_tokens(spec_len, acceptance) == pytest.approx(sum(acceptance**i for i in range(spec_len + 1)), rel=1e-6)


def test_a_draft_that_always_agrees_gives_the_whole_lookahead_plus_one() -> None:
    assert expected_tokens(4, 1.0) == 5


def test_autoregressive_decoding_gives_one_token_per_pass() -> None:
    assert ar_tokens_per_s(0.020) == pytest.approx(50)


def test_speculative_decoding_pays_for_its_drafting() -> None:
    assert sd_tokens_per_s(3.0, t_verify=0.020, t_draft_steps=0.010) == pytest.approx(100)


def model(**changes: float) -> SsdModel:
    values = {"p_hit": 0.7, "tokens_hit": 3.0, "tokens_miss": 2.0, "t_verify": 0.020, "t_draft": 0.015, "t_fallback": 0.012}
    return SsdModel(**(values | changes))  # type: ignore[arg-type]


def test_a_hit_hides_the_draft_and_a_miss_pays_the_fallback() -> None:
    assert model(p_hit=1.0).tokens_per_s() == pytest.approx(3.0 / 0.020)
    assert model(p_hit=0.0).tokens_per_s() == pytest.approx(2.0 / (0.020 + 0.012))
    assert model().tokens_per_s() == pytest.approx((0.7 * 3 + 0.3 * 2) / (0.7 * 0.020 + 0.3 * 0.032))


def test_a_draft_slower_than_the_target_sets_the_time_of_a_round() -> None:
    assert model(p_hit=1.0, t_draft=0.030).tokens_per_s() == pytest.approx(3.0 / 0.030)


def test_a_round_takes_at_least_the_time_to_read_both_models_from_shared_memory() -> None:
    assert model(p_hit=1.0, memory_s=0.050).tokens_per_s() == pytest.approx(3.0 / 0.050)
    assert model(memory_s=0.001).tokens_per_s() == model().tokens_per_s()


def test_ssd_limited_by_memory_bandwidth_does_not_beat_speculative_decoding() -> None:
    """Each role reads as many bytes as it does alone, so hiding the draft saves no time."""
    speculative = sd_tokens_per_s(3.0, t_verify=0.020, t_draft_steps=0.010)
    together = model(p_hit=1.0, tokens_hit=3.0, t_draft=0.010, memory_s=0.030)
    assert together.tokens_per_s() <= speculative * (1 + 1e-12)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_waits_if_any_of_its_sequences_misses(batch: int) -> None:
    """Simulated rounds: the tokens of one sequence over the time of the whole batch."""
    dice, ssd = random.Random(0), model(batch=batch, p_hit=0.8)
    tokens = seconds = 0.0
    for _ in range(100_000):
        hits = [dice.random() < ssd.p_hit for _ in range(batch)]
        tokens += ssd.tokens_hit if hits[0] else ssd.tokens_miss
        seconds += max(ssd.t_verify, ssd.t_draft) + (0 if all(hits) else ssd.t_fallback)
    assert ssd.tokens_per_s() == pytest.approx(tokens / seconds, rel=0.01)
