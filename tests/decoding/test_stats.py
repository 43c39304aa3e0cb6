"""A sequence's stats, from rounds made up by hand. Input times are seconds, output times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from ssd.decoding.round import Round
from ssd.decoding.stats import SequenceStats
from ssd.runtime.trace import Span

NOTHING: Any = None  # the stats do not use the tokens of a round


@dataclass
class Ran:
    """A run that has completed."""

    span: Span
    value: Any = None

    def wait(self) -> None:
        pass


def speculative_round(verify: tuple[float, float], draft: tuple[float, float]) -> Round:
    """A round of plain speculative decoding."""
    return Round(NOTHING, Ran(Span("target", "verify", *verify)), drafting=Ran(Span("draft", "draft", *draft)))


def ssd_round(verify: tuple[float, float], draft: tuple[float, float], looked_up: tuple[float, float] = (0.0, 0.0)) -> Round:
    return Round(
        NOTHING,
        Ran(Span("target", "verify", *verify)),
        drafting=Ran(Span("draft", "speculate", *draft)),
        looked_up=Ran(Span("draft", "look up", *looked_up)),
        budget=8,
    )


def add(stats: SequenceStats, round: Round, *, accepted: int = 0, proposed: int = 4, **more: Any) -> None:
    """Add a round that keeps all accepted tokens and the bonus token."""
    stats.add(round, **({"length": 9} | more), tokens=accepted + 1, accepted=accepted, proposed=proposed)


def test_a_sequence_of_one_token_has_no_rounds_and_no_rates() -> None:
    stats = SequenceStats(arrived=1.0, first_token=1.5, last_token=1.5).summary("ssd", tokens=1)
    assert (stats.rounds, stats.accepted_per_round, stats.branches_unused, stats.hits_per_k) == (0, 0.0, 0, {})
    assert stats.time_to_first_token_s == 0.5
    assert (stats.rank_counts, stats.proposed_counts, stats.accepted_at) == ({}, {}, [])
    nothing = (stats.acceptance_rate, stats.hit_rate, stats.t_verify_ms, stats.t_draft_ms, stats.t_fallback_ms)
    assert nothing == (None,) * 5
    assert stats.hidden_draft_ms is stats.decode_tokens_per_s is stats.mean_acceptance_length is None


def test_acceptance_is_a_fraction_of_the_proposed_tokens() -> None:
    stats = SequenceStats()
    for accepted, proposed in ((4, 4), (1, 4), (0, 4), (1, 2)):
        add(stats, speculative_round((1, 2), (0, 1)), accepted=accepted, proposed=proposed, hit=False, missed=True)
    summary = stats.summary("sd", tokens=11)
    assert (summary.rounds, summary.accepted_per_round) == (4, 1.5)
    assert summary.acceptance_rate == pytest.approx(6 / 14)
    assert summary.hit_rate is None


@pytest.mark.parametrize("tokens,length", [(11, 2.5), (10, 2.25)])  # the first is the prefill's
def test_the_mean_acceptance_length_is_the_kept_tokens_over_the_rounds(tokens: int, length: float) -> None:
    """With the bonus token of each round, except where the last round's was cut."""
    stats = SequenceStats()
    for accepted in (4, 0, 1, 1):
        add(stats, speculative_round((1, 2), (0, 1)), accepted=accepted, hit=False, missed=True)
    assert stats.summary("sd", tokens=tokens).mean_acceptance_length == length


def test_a_look_up_is_counted_by_its_outcomes_accepted_count() -> None:
    """That is the previous round's accepted count. The first look-up, after a prompt, is not counted."""
    stats = SequenceStats()
    for accepted, hit, rank in ((2, False, -1), (4, True, 0), (2, False, 9), (0, True, 0)):
        add(stats, ssd_round((0, 1), (0, 1)), accepted=accepted, hit=hit, missed=not hit, rank=rank)
    summary = stats.summary("ssd", tokens=13)
    assert summary.hits_per_k == {2: (2, 2), 4: (0, 1)}
    assert summary.hit_rate == pytest.approx(2 / 3)


def test_branches_that_no_hit_used_are_counted_as_unused() -> None:
    stats = SequenceStats()
    for hit, rank in ((False, -1), (True, 0), (True, 0)):
        add(stats, ssd_round((0, 1), (0, 1)), accepted=1, hit=hit, missed=not hit, rank=rank)
    assert stats.summary("ssd", tokens=7).branches_unused == 3 * 8 - 2


def test_rounds_beyond_the_drafts_context_count_neither_look_ups_nor_branches() -> None:
    """Nothing is proposed in them, and their outcomes have no rank, because there was no guess."""
    stats = SequenceStats()
    round = replace(ssd_round((0, 1), (0, 1)), draft_context=16)
    for length, proposed, hit, rank in ((9, 4, False, -1), (14, 2, True, 0), (16, 0, False, -1), (17, 0, False, -1)):
        add(stats, round, length=length, accepted=proposed, proposed=proposed, hit=hit, missed=False, rank=rank)
    summary = stats.summary("ssd", tokens=11)
    assert (summary.hits_per_k, summary.branches_unused, summary.acceptance_rate) == ({4: (1, 1)}, 2 * 8 - 1, 1.0)


def test_accepted_tokens_are_counted_by_position() -> None:
    """The number of rounds that accepted a first token, a second, and so on, up to the most that any round accepted."""
    stats = SequenceStats()
    for accepted in (3, 0, 1, 3, 2):
        add(stats, speculative_round((1, 2), (0, 1)), accepted=accepted, hit=False, missed=True)
    assert stats.summary("sd", tokens=15).accepted_at == [4, 3, 2]


def test_rounds_are_counted_by_the_number_of_proposed_tokens() -> None:
    stats = SequenceStats()
    for proposed in (4, 0, 4, 2, 4):
        add(stats, speculative_round((1, 2), (0, 1)), proposed=proposed, hit=False, missed=True)
    assert stats.summary("sd", tokens=6).proposed_counts == {0: 1, 2: 1, 4: 3}


def test_next_tokens_are_counted_by_rank_if_there_was_a_look_up() -> None:
    stats = SequenceStats()
    for rank in (-1, 0, 2, 0, 300):
        add(stats, ssd_round((1, 2), (0, 1)), hit=rank == 0, missed=rank != 0, rank=rank)
    assert stats.summary("ssd", tokens=6).rank_counts == {0: 2, 2: 1, 300: 1}


def test_next_tokens_after_a_speculation_that_was_accepted_whole_are_counted_apart() -> None:
    stats = SequenceStats()
    for accepted, rank in ((2, -1), (1, 5), (2, 6), (0, 5), (2, 7)):
        add(stats, ssd_round((1, 2), (0, 1)), proposed=2, accepted=accepted, hit=False, missed=True, rank=rank)
    found = stats.summary("ssd", tokens=6)
    assert (found.rank_counts, found.rank_counts_whole) == ({5: 2, 6: 1, 7: 1}, {5: 2})


def test_times_are_medians_in_milliseconds() -> None:
    stats = SequenceStats()
    for verify, draft in ((0.020, 0.008), (0.030, 0.004), (0.500, 0.006)):
        add(stats, speculative_round((1, 1 + verify), (0, draft)), hit=False, missed=True)
    summary = stats.summary("sd", tokens=4)
    assert summary.t_verify_ms == pytest.approx(30)
    assert summary.t_draft_ms == pytest.approx(6)


def test_only_rounds_with_a_fallback_count_its_time() -> None:
    stats = SequenceStats()
    for missed, looked_up in ((False, 0.001), (True, 0.010), (False, 0.002), (True, 0.030)):
        add(stats, ssd_round((1, 2), (1, 2), (0.0, looked_up)), hit=not missed, missed=missed)
    assert stats.summary("ssd", tokens=5).t_fallback_ms == pytest.approx(20)


@pytest.mark.parametrize(
    "draft,hidden_ms",
    [
        ((1.000, 1.050), 50),  # within the verification
        ((1.050, 1.150), 50),  # ends after it
        ((0.980, 1.030), 30),  # begins before it
        ((0.900, 1.300), 100),  # covers it
        ((1.200, 1.300), 0),  # begins after it
    ],
)
def test_hidden_draft_time_is_the_overlap_with_the_verification(draft: tuple[float, float], hidden_ms: float) -> None:
    stats = SequenceStats()
    add(stats, ssd_round((1.0, 1.1), draft), hit=False, missed=True)
    assert stats.summary("ssd", tokens=2).hidden_draft_ms == pytest.approx(hidden_ms)


def test_only_ssd_has_hidden_draft_time() -> None:
    stats = SequenceStats()
    add(stats, speculative_round((1, 2), (0, 1)), hit=False, missed=True)
    assert stats.summary("sd", tokens=2).hidden_draft_ms is None


def test_speed_excludes_the_prefill_and_the_first_token() -> None:
    stats = SequenceStats(arrived=0.0, first_token=2.0, last_token=7.0)
    assert stats.summary("ar", tokens=11).decode_tokens_per_s == pytest.approx(2.0)
