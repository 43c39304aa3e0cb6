"""row_stats (the distribution of a token) and sample (drawing it), compared with the oracle; and the law of the drawn
tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import reference
from ops.backend import chosen
from ops.cases import assert_same_bits, f32, generator, i32, oracle_probabilities, probabilities, sample, sampling
from ops.statistics import chi_square_p
from ssd import ops

# row_stats --------------------------------------------------------------------------------------------------------------------


def assert_row_stats(logits: Tensor, settings: tuple[Tensor, Tensor, Tensor, Tensor], f: int = 0, c: float = 1.0) -> None:
    expected = oracle_probabilities(logits, settings, f, c)
    stats = ops.row_stats(logits, *settings, f, c)
    assert stats.shape == (len(logits), ops.STATS) and stats.dtype == torch.float32
    got = probabilities(logits, stats)
    assert torch.equal(got > 0, expected > 0), "another set of entries is kept"
    torch.testing.assert_close(got, expected, rtol=3e-5, atol=1e-9)


def clear_of_the_cuts(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> bool:
    """Whether the set of kept tokens is the same under float32 rounding."""
    kept = [
        reference.distribution(logits, temperature, top_k, min(1.0, top_p * s) if top_p < 1 else 1.0, min_p * s) > 0
        for s in (1 - 1e-5, 1.0, 1 + 1e-5)
    ]
    return torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2])


@pytest.mark.parametrize("temperature", [0.0, 0.05, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 10_000])
@pytest.mark.parametrize("top_p, min_p", [(1.0, 0.0), (0.9, 0.0), (1.0, 0.05), (0.8, 0.1)])
def test_row_stats_describe_the_processed_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    for vocabulary in (1, 2, 7, 64, 333):
        logits = 3 * torch.randn(2, vocabulary, generator=generator(vocabulary))
        assert_row_stats(logits, sampling(2, temperature, top_k, top_p, min_p))


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0, 0.0), (0.8, 40, 0.95, 0.01), (0.0, 0, 1.0, 0.0)])
def test_row_stats_handle_a_large_vocabulary(settings: tuple[float, int, float, float]) -> None:
    logits = 4 * torch.randn(2, 20_011, generator=generator(1))
    assert_row_stats(logits, sampling(2, *settings), f=5, c=0.3)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("top_k, top_p, min_p", [(0, 0.90007, 0.0), (2345, 1.0, 0.0), (4001, 0.70007, 0.0), (0, 1.0, 0.3)])
def test_row_stats_cut_between_thousands_of_equal_logits(levels: int, top_k: int, top_p: float, min_p: float) -> None:
    logits = (torch.arange(5_003) % levels).float()[None]
    assert_row_stats(logits, sampling(1, 1.0, top_k, top_p, min_p), f=1_500, c=0.3)


@given(
    values=st.lists(st.integers(-8, 8), min_size=1, max_size=40),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
    f=st.integers(0, 45),
    c=st.sampled_from([1.0, 0.3, 0.01]),
)
def test_row_stats_break_ties_by_the_lower_id(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float, f: int, c: float
) -> None:
    logits = f32([values]) / 4
    top_p, min_p = float(f32(top_p)), float(f32(min_p))
    assume(clear_of_the_cuts(logits[0], temperature, top_k, top_p, min_p))
    assert_row_stats(logits, sampling(1, temperature, top_k, top_p, min_p), f, c)


@pytest.mark.parametrize("f", [0, 1, 3, 12, 100])
@pytest.mark.parametrize("c", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("top_k", [0, 6])
def test_row_stats_scale_the_top_f_by_c(f: int, c: float, top_k: int) -> None:
    logits = 2 * torch.randn(3, 12, generator=generator(f))
    assert_row_stats(logits, sampling(3, 0.9, top_k), f, c)


def test_c_of_one_changes_no_bit() -> None:
    logits = torch.randn(3, 12, generator=generator(4))
    plain, scaled = (ops.row_stats(logits, *sampling(3), f, 1.0) for f in (0, 5))
    assert torch.equal(plain, scaled)


def test_rows_are_processed_by_their_own_settings() -> None:
    logits = torch.randn(5, 30, generator=generator(5))
    settings = (f32([0.0, 1.0, 0.7, 2.0, 1.0]), i32([0, 4, 0, 9, 0]), f32([1.0, 1.0, 0.85, 1.0, 1.0]), f32([0, 0, 0, 0.1, 0]))
    assert_row_stats(logits, settings)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_rows_of_a_slot_are_processed_by_its_settings(rows: int) -> None:
    settings = (f32([0.0, 0.7, 2.0]), i32([0, 9, 0]), f32([1.0, 0.85, 1.0]), f32([0, 0, 0.1]))
    logits = torch.randn(3 * rows, 30, generator=generator(5))
    by_row = ops.row_stats(logits, *(x.repeat_interleave(rows) for x in settings), 3, 0.5)
    assert_same_bits(ops.row_stats(logits, *settings, 3, 0.5), by_row)


def test_masked_logits_have_no_probability() -> None:
    logits = torch.randn(2, 20, generator=generator(6))
    logits[:, [0, 3, 19]] = -math.inf
    got = probabilities(logits, ops.row_stats(logits, *sampling(2, 0.8, 0, 0.99)))
    assert torch.equal(got[:, [0, 3, 19]], torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(got.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)


@given(seed=st.integers(0, 10_000), shift=st.sampled_from([-3e4, -70.0, 70.0, 3e4]))
def test_row_stats_do_not_change_if_the_logits_are_shifted(seed: int, shift: float) -> None:
    logits = (torch.randn(1, 25, generator=generator(seed)) * 64).round() / 64  # multiples of 1/64, so that a shift is exact
    usual, shifted = (probabilities(z, ops.row_stats(z, *sampling(1, 0.7, 9))) for z in (logits, logits + shift))
    torch.testing.assert_close(shifted, usual, rtol=3e-5, atol=1e-9)


# sample -----------------------------------------------------------------------------------------------------------------------


def clear_ranks(weights: Tensor, seed: int, position: int) -> int:
    """How many of the oracle's first ranks differ by more than float32 rounding."""
    times = reference.race_times(seed, position, reference.DRAFT, weights)
    ordered = times[times.isfinite()].sort().values
    close = ((ordered[1:] - ordered[:-1]) <= 1e-5 * ordered[1:]).nonzero().flatten()
    return int(close[0]) if len(close) else len(ordered)


@pytest.mark.parametrize(
    "vocabulary, rows, m", [(1, 3, 1), (7, 60, 1), (7, 60, 3), (6, 20, 9), (130, 12, 2), (1000, 4, 64), (2500, 3, 8)]
)
@pytest.mark.parametrize("settings", [(1.0, 0, 1.0, 0.0), (0.7, 5, 0.95, 0.01)])
def test_sample_draws_the_oracles_tokens(vocabulary: int, rows: int, m: int, settings: tuple[float, int, float, float]) -> None:
    g = generator(vocabulary)
    logits = 2 * torch.randn(rows, vocabulary, generator=g)
    seed = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=g)
    position = torch.randint(0, 2**31 - 1, (rows,), generator=g, dtype=torch.int32)
    stats = ops.row_stats(logits, *sampling(rows, *settings))
    drawn = sample(logits, stats, seed, position, m)
    weights = oracle_probabilities(logits, sampling(rows, *settings))
    compared = 0
    for row in range(rows):
        arguments = (weights[row], int(seed[row]), int(position[row]))
        clear = clear_ranks(*arguments)
        count = m if clear >= int((weights[row] > 0).sum()) else clear
        assert drawn[row, :count].tolist() == reference.sample(*arguments, m)[:count]
        compared += min(count, m)
    assert compared >= 0.9 * rows * m


def test_a_draw_depends_only_on_the_seed_and_position() -> None:
    logits = torch.randn(1, 50, generator=generator(1)).repeat(6, 1)
    stats = ops.row_stats(logits, *sampling(6))
    seed, position = torch.tensor([1, 1, 2, 1, 2, 2]), i32([5, 6, 5, 5, 6, 5])
    drawn = sample(logits, stats, seed, position, 8).tolist()
    assert drawn[0] == drawn[3] and drawn[2] == drawn[5]
    assert len({tuple(row) for row in drawn}) == 4


def test_a_greedy_row_gives_its_largest_tokens_in_order() -> None:
    logits = f32([[1, 3, 3, 0, 2], [5, 5, 5, 5, 5], [-4, -3, -2, -1, 0]])
    stats = ops.row_stats(logits, *sampling(3, temperature=0.0))
    drawn = sample(logits, stats, torch.arange(3), i32([1, 2, 3]), 4)
    assert drawn.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [4, 3, 2, 1]]


def test_greedy_and_sampled_rows_can_share_a_call() -> None:
    logits = f32([[0, 1, 2], [0, 1, 2]])
    stats = ops.row_stats(logits, f32([0.0, 1.0]), i32([0, 1]), f32([1, 1]), f32([0, 0]))
    assert sample(logits, stats, torch.arange(2), i32([0, 0]), 2).tolist() == [[2, 1], [2, -1]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draws_beyond_the_vocabulary_are_minus_one(temperature: float) -> None:
    logits = torch.randn(4, 3, generator=generator(2))
    stats = ops.row_stats(logits, *sampling(4, temperature))
    drawn = sample(logits, stats, torch.arange(4), i32([0, 1, 2, 3]), 5)
    assert torch.equal(drawn[:, 3:], torch.full((4, 2), -1, dtype=torch.int32))
    assert all(sorted(row) == [0, 1, 2] for row in drawn[:, :3].tolist())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sample_returns_target_ids(temperature: float) -> None:
    g = generator(3)
    logits, id_of = torch.randn(30, 9, generator=g), i32([2, 3, 5, 7, 11, 13, 17, 19, 23])
    stats = ops.row_stats(logits, *sampling(30, temperature))
    seed, position = torch.arange(30), torch.full((30,), 4, dtype=torch.int32)
    columns = sample(logits, stats, seed, position, 12)
    assert columns.min() == -1
    named = torch.where(columns < 0, -1, id_of[columns.clamp_min(0)])
    assert torch.equal(sample(logits, stats, seed, position, 12, id_of), named)


def test_the_rows_of_a_slot_draw_with_its_seed() -> None:
    """Two slots of three rows, two tokens a row, into a column range of a wider table; positions lie two apart."""
    logits, seed = torch.randn(6, 50, generator=generator(7)), torch.tensor([5, -9])
    stats = ops.row_stats(logits, *sampling(6))
    position, table = i32([[4, 0], [5, 0], [6, 0]] * 2)[:, 0], torch.full((2, 9), -7, dtype=torch.int32)
    ops.sample(logits, stats, seed, position, table[:, 2:8], 2)
    by_row = sample(logits, stats, seed.repeat_interleave(3), position + 1, 2)
    assert table[:, 2:8].tolist() == by_row.view(2, 6).tolist()
    assert table[:, [0, 1, 8]].tolist() == [[-7] * 3] * 2


def test_tokens_may_lie_anywhere_in_a_table() -> None:
    """As branches write one step of all their tokens: [slots, branches, steps] at [:, :, 1]."""
    logits = torch.randn(6, 20, generator=generator(8))
    stats, position = ops.row_stats(logits, *sampling(6)), i32([1, 2, 3, 4, 5, 6])
    branches = torch.full((2, 3, 4), -7, dtype=torch.int32)
    ops.sample(logits, stats, torch.tensor([3, 4]), position, branches[:, :, 1])
    by_row = sample(logits, stats, torch.tensor([3, 4]).repeat_interleave(3), position + 1)
    assert branches[:, :, 1].tolist() == by_row.view(2, 3).tolist()
    assert branches[:, :, [0, 2, 3]].unique().tolist() == [-7]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_the_missed_slots_get_tokens(temperature: float) -> None:
    logits = torch.randn(6, 20, generator=generator(9))
    stats, tokens = ops.row_stats(logits, *sampling(6, temperature)), torch.full((3, 2), -7, dtype=torch.int32)
    missed = torch.tensor([1, 0, 1], dtype=torch.uint8)
    ops.sample(logits, stats, torch.arange(3), i32([1] * 6), tokens, missed=missed)
    drawn = sample(logits, stats, torch.arange(3).repeat_interleave(2), i32([2] * 6)).view(3, 2)
    drawn[1] = -7
    assert tokens.tolist() == drawn.tolist()


@pytest.mark.parametrize("parity, next_half", [(0, False), (1, False), (0, True), (1, True)])
@pytest.mark.parametrize("vocabulary", [7, 2_500])
def test_the_distributions_are_kept_in_one_half_of_q(parity: int, next_half: bool, vocabulary: int) -> None:
    """Address 1 and nodes 1 and 2 of q, for hits too: what tokens could be drawn from is kept, and nothing else is touched."""
    logits = torch.randn(4, vocabulary, generator=generator(10))
    stats = ops.row_stats(logits, *sampling(4, 0.8, 5))
    q_logits, q_stats = torch.full((2, 2, 3, 4, vocabulary), -7.0), torch.full((2, 2, 3, 4, ops.STATS), -7.0)
    expected = [q_logits.clone(), q_stats.clone()]
    half = 1 - parity if next_half else parity
    for q, values in zip(expected, (logits, stats), strict=True):
        q[:, half, 1, 1:3] = values.view(2, 2, -1)
    ops.sample(
        logits=logits,
        stats=stats,
        seed=torch.arange(2),
        position=i32([3] * 4),
        tokens=torch.zeros(2, 2, dtype=torch.int32),
        missed=torch.tensor([0, 1], dtype=torch.uint8),
        parity=i32([parity]),
        next_half=next_half,
        q_logits=q_logits[:, :, 1, 1:3],
        q_stats=q_stats[:, :, 1, 1:3],
    )
    assert_same_bits(q_logits, expected[0])
    assert_same_bits(q_stats, expected[1])


# The law of the drawn tokens --------------------------------------------------------------------------------------------------

DRAWS = chosen.draws // 2
SETTINGS = [(1.0, 0, 1.0, 0.0, 0, 1.0), (0.7, 6, 0.95, 0.02, 0, 1.0), (1.3, 0, 1.0, 0.0, 2, 0.3)]
PASS = 0.001 / (3 * len(SETTINGS))


def draws(settings: tuple[float, int, float, float, int, float], position: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Returns (DRAWS rows of m tokens, each with its own seed; the oracle's distribution)."""
    *processing, f, c = settings
    logits = torch.randn(1, 8, generator=generator(11))
    stats = ops.row_stats(logits, *sampling(1, *processing), f, c)
    drawn = sample(logits.expand(DRAWS, 8).contiguous(), stats.repeat(DRAWS, 1), torch.arange(DRAWS), position, m)
    return drawn.long(), reference.distribution(logits[0], *processing, f, c)


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_draw_follows_the_distribution(settings: tuple[float, int, float, float, int, float]) -> None:
    drawn, p = draws(settings, torch.full((DRAWS,), 3, dtype=torch.int32), 1)
    assert chi_square_p(drawn[:, 0], p) > PASS


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_draws_follow_the_law_without_replacement(settings: tuple[float, int, float, float, int, float]) -> None:
    drawn, p = draws(settings, torch.full((DRAWS,), 3, dtype=torch.int32), 2)
    joint = torch.where(torch.eye(8, dtype=torch.bool), 0.0, p[:, None] * p[None, :] / (1 - p[:, None]))
    assert chi_square_p(8 * drawn[:, 0] + drawn[:, 1], joint.flatten()) > PASS


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_at_neighbouring_positions_are_independent(settings: tuple[float, int, float, float, int, float]) -> None:
    (first, p), (second, _) = (draws(settings, torch.full((DRAWS,), at, dtype=torch.int32), 1) for at in (3, 4))
    assert chi_square_p(8 * first[:, 0] + second[:, 0], torch.outer(p, p).flatten()) > PASS
