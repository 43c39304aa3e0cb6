"""Rows of logits that have no distribution: NaN or +inf anywhere in them, or no finite number. −inf alone is a mask, and legal.

Such a row gives no token. A bad row of the target ends its sequence, if the walk stands on it. A bad row of the draft ends its
speculation, or leaves a node without guesses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import reference
from ops.cases import NAN, f32, fork, generator, i32, oracle_probabilities, probabilities, sample, sampling
from ops.test_speculation_ops import (
    assert_verdicts,
    decided,
    greedy_round,
    look_up,
    lookup_arguments,
    random_round,
    random_trees,
    verify,
)
from ssd import ops

INFINITY = math.inf
NEGATIVE_NAN = float(torch.tensor([-4194304], dtype=torch.int32).view(torch.float32)[0])  # with the sign bit


@dataclass(frozen=True)
class Fault:
    """A way to spoil a row: one value in one column (counted from the end if negative), or everywhere."""

    name: str
    value: float
    column: int | None = None

    def __str__(self) -> str:
        return self.name

    def spoil(self, row: Tensor) -> None:
        row[slice(None) if self.column is None else self.column % len(row)] = self.value


FAULTS = [
    Fault("all NaN", NAN),
    Fault("NaN first", NAN, 0),
    Fault("NaN last", NAN, -1),
    Fault("NaN in between", NAN, 17),
    Fault("a negative NaN", NEGATIVE_NAN, 17),
    Fault("+inf", INFINITY, 17),
    Fault("all +inf", INFINITY),
    Fault("all masked", -INFINITY),
]
every_fault = pytest.mark.parametrize("fault", FAULTS, ids=str)
# Vocabularies of one slice and of several, and rows that do not fill a vector.
every_size = pytest.mark.parametrize("vocabulary", [1, 23, 64, 333, 2_500])
PROCESSING = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "plain": (1.0, 0, 1.0, 0.0),
    "top-k": (0.8, 3, 1.0, 0.0),
    "top-p": (0.8, 0, 0.9, 0.0),
    "min-p": (0.8, 0, 1.0, 0.1),
    "all": (0.8, 7, 0.9, 0.01),
}
every_processing = pytest.mark.parametrize("processing", PROCESSING.values(), ids=PROCESSING)


def spoilt(fault: Fault, vocabulary: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Returns (logits whose row 1 is spoilt, the same logits before)."""
    whole = 2 * torch.randn(rows, vocabulary, generator=generator(vocabulary))
    logits = whole.clone()
    fault.spoil(logits[1])
    return logits, whole


def test_the_oracle_knows_a_bad_row() -> None:
    good = [[0.0], [-INFINITY, 1.0], [-3e38, 3e38], [0.0, -0.0]]
    bad = [[NAN], [1.0, NAN], [INFINITY, 0.0], [-INFINITY, -INFINITY], [-INFINITY, NAN], [INFINITY, -INFINITY]]
    assert not any(reference.is_bad(f32(row)) for row in good)
    assert all(reference.is_bad(f32(row)) for row in bad)


# row_stats and sample ---------------------------------------------------------------------------------------------------------


@every_fault
@every_size
@every_processing
def test_a_bad_row_has_no_distribution_and_its_neighbours_keep_theirs(
    fault: Fault, vocabulary: int, processing: tuple[float, int, float, float]
) -> None:
    logits, whole = spoilt(fault, vocabulary)
    stats = ops.row_stats(logits, *sampling(3, *processing), 2, 0.5)
    assert bool(stats[1].isnan().all())
    assert float(probabilities(logits, stats)[1].sum()) == 0
    alone = ops.row_stats(whole, *sampling(3, *processing), 2, 0.5)
    assert torch.equal(stats[[0, 2]], alone[[0, 2]])


@every_fault
@every_size
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("trimmed", [False, True])
def test_no_token_is_drawn_from_a_bad_row(fault: Fault, vocabulary: int, m: int, temperature: float, trimmed: bool) -> None:
    logits, whole = spoilt(fault, vocabulary)
    id_of = 2 * torch.arange(vocabulary, dtype=torch.int32) + 5 if trimmed else None

    def drawn(logits: Tensor) -> Tensor:
        stats = ops.row_stats(logits, *sampling(3, temperature))
        return sample(logits, stats, torch.arange(3), i32([4, 5, 6]), m, id_of)

    assert drawn(logits)[1].tolist() == [-1] * m
    assert torch.equal(drawn(logits)[[0, 2]], drawn(whole)[[0, 2]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocabulary", [4, 64, 2_500])
def test_masked_logits_are_legal_and_never_drawn(temperature: float, vocabulary: int) -> None:
    logits = torch.full((2, vocabulary), -INFINITY)
    logits[0, [1, 3]] = f32([2.0, -1.0])
    logits[1, vocabulary - 1] = -3e38
    settings = sampling(2, temperature)
    stats = ops.row_stats(logits, *settings)
    assert not bool(stats.isnan().any())
    torch.testing.assert_close(probabilities(logits, stats), oracle_probabilities(logits, settings), rtol=3e-5, atol=1e-9)
    drawn = sample(logits, stats, torch.arange(2), i32([0, 0]), 3).tolist()
    assert sorted(drawn[0]) == [-1, 1, 3] and drawn[0][2] == -1
    assert drawn[1] == [vocabulary - 1, -1, -1]


@every_processing
def test_logits_far_apart_are_not_bad(processing: tuple[float, int, float, float]) -> None:
    logits = f32([[-3e38, 3e38, 0.0]])
    assert probabilities(logits, ops.row_stats(logits, *sampling(1, *processing))).tolist() == [[0.0, 1.0, 0.0]]


def drawn_with_lengths(logits: Tensor, spec_len: list[int], drafted: int, m: int = 1) -> tuple[list[int], list[int]]:
    """Returns (spec_len, bad) after a draw. bad is 7 where it is not written."""
    rows, (length, bad) = len(logits), (i32(spec_len), torch.full((len(spec_len),), 7, dtype=torch.int32))
    stats = ops.row_stats(logits, *sampling(rows))
    tokens = torch.full((len(spec_len), rows // len(spec_len) * m), -9, dtype=torch.int32)
    ends = {"spec_len": length, "bad": bad, "drafted": drafted}
    ops.sample(logits, stats, torch.arange(len(spec_len)), torch.arange(rows, dtype=torch.int32), tokens, m, **ends)
    return length.tolist(), bad.tolist()


@every_fault
@pytest.mark.parametrize("vocabulary", [23, 2_500])
def test_a_bad_row_ends_its_speculation(fault: Fault, vocabulary: int) -> None:
    """Before the token that the row would have given. A speculation that is no longer than that stays as it is."""
    logits, _ = spoilt(fault, vocabulary)
    assert drawn_with_lengths(logits, [4, 4, 4], drafted=2) == ([4, 2, 4], [7, 1, 7])
    assert drawn_with_lengths(logits, [4, 3, 4], drafted=2) == ([4, 2, 4], [7, 1, 7])
    assert drawn_with_lengths(logits, [4, 2, 4], drafted=2) == ([4, 2, 4], [7, 7, 7])
    assert drawn_with_lengths(logits, [4, 0, 4], drafted=0) == ([4, 0, 4], [7, 7, 7])  # a free slot


def test_a_bad_row_among_several_of_a_tree_leaves_the_others_their_children() -> None:
    logits = torch.randn(6, 9, generator=generator(3))
    logits[4, 8] = NAN
    assert drawn_with_lengths(logits, [14, 14], drafted=3, m=2) == ([14, 14], [7, 1])
    assert drawn_with_lengths(logits, [14, 3], drafted=3, m=2) == ([14, 3], [7, 7])


def test_a_row_with_fewer_tokens_than_children_is_not_bad() -> None:
    logits = f32([[1.0, -INFINITY, 0.0]])
    assert drawn_with_lengths(logits, [3], drafted=0, m=3) == ([3], [7])


def test_a_bad_row_of_a_slot_that_has_not_missed_ends_nothing() -> None:
    logits = torch.full((2, 9), NAN)
    spec_len, bad, tokens = i32([3, 3]), i32([0, 0]), i32([[5], [5]])
    missed, stats = torch.tensor([0, 1], dtype=torch.uint8), ops.row_stats(logits, *sampling(2))
    ops.sample(logits, stats, torch.arange(2), i32([4, 4]), tokens, missed=missed, spec_len=spec_len, bad=bad, drafted=1)
    assert (tokens.tolist(), spec_len.tolist(), bad.tolist()) == ([[5], [-1]], [3, 1], [0, 1])


# fork -------------------------------------------------------------------------------------------------------------------------


@every_fault
@pytest.mark.parametrize("vocabulary", [23, 2_500])
@pytest.mark.parametrize("trimmed", [False, True])
def test_nothing_is_guessed_after_a_bad_row(fault: Fault, vocabulary: int, trimmed: bool) -> None:
    """The other rows keep their guesses. The drafted token's column counts too, although it is never guessed."""
    logits = torch.randn(2, 3, vocabulary, generator=generator(8))
    fault.spoil(logits[0, 1])
    column = 0 if fault.column is None else fault.column % vocabulary
    id_of = 2 * torch.arange(vocabulary, dtype=torch.int32) + 5 if trimmed else None
    drafted = 2 * column + 5 if trimmed else column
    spec_tokens, table = i32([[drafted, drafted]] * 2), i32([[[0] * 3, [0] * 3, [3, 2, 1]]] * 2)
    hit = torch.zeros(2, dtype=torch.uint8)
    guess, guess_k = fork(logits, spec_tokens, i32([2, 2]), table, hit, 6, id_of)
    assert guess_k.tolist() == [[0, 0, 0, -2, -2, 2], [0, 0, 0, 1, 1, 2]]
    for s in range(2):
        ids = None if id_of is None else id_of.tolist()
        expected = reference.fork(logits[s], spec_tokens[s].tolist(), 2, [3, 2, 1], ids)
        assert list(zip(guess_k[s].tolist(), guess[s].tolist(), strict=True)) == expected


@pytest.mark.parametrize("vocabulary", [4, 2_500])
def test_masked_tokens_are_not_guessed(vocabulary: int) -> None:
    """A row is not bad if its only finite logit is the drafted token's."""
    logits = torch.full((1, 2, vocabulary), -INFINITY)
    logits[0, 0, 2] = 1.0
    logits[0, 1, [0, vocabulary - 1]] = f32([1.0, 2.0])
    table = i32([[[0] * 2, [2, 3]]] * 2)
    guess, guess_k = fork(logits, i32([[2]]), i32([1]), table, torch.zeros(1, dtype=torch.uint8), 5)
    assert guess_k.tolist() == [[-1, -1, 1, 1, -1]]
    assert guess.tolist() == [[0, 0, vocabulary - 1, 0, 0]]


# cache_lookup -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "branch,length", [([-1, 5, 6], 0), ([4, -1, 6], 1), ([4, 5, -1], 2), ([4, 5, 6], 3), ([-1, -1, -1], 0)], ids=str
)
def test_a_branch_ends_before_its_first_bad_row(branch: list[int], length: int) -> None:
    arguments = lookup_arguments([[1, 4]], [[0, 1]], [[4, 4]], lookahead=3)
    arguments["branch_tokens"][0, 1] = i32(branch)
    after = look_up(arguments)
    assert (int(after["hit"]), int(after["q_address"])) == (1, 1)
    assert (int(after["spec_len"]), int(after["bad"])) == (length, int(length < 3))


def test_a_long_branch_ends_before_its_first_bad_row() -> None:
    arguments = lookup_arguments([[1, 4]], [[1]], [[4]], lookahead=70)
    arguments["branch_tokens"][0, 0, [37, 66]] = -1
    after = look_up(arguments)
    assert (int(after["spec_len"]), int(after["bad"])) == (37, 1)


def test_a_bad_row_after_the_room_for_tokens_does_not_count() -> None:
    arguments = lookup_arguments([[1, 4]], [[1]], [[4]], lookahead=3)
    arguments["branch_tokens"][0, 0, 2] = -1
    arguments["max_length"] = arguments["length"] + 4
    after = look_up(arguments)
    assert (int(after["spec_len"]), int(after["bad"])) == (2, 0)


@pytest.mark.parametrize("budget", [2, 40])
def test_guesses_missing_after_a_bad_row_are_reported(budget: int) -> None:
    """With a hit and with a miss; but not for the first look-up of a sequence, nor for a finished one."""
    outcomes = [[0, 4], [1, 9], [-1, -1], [0, 4]]
    guess_k = [[0] + [-1] * (budget - 2) + [-2]] * 4
    arguments = lookup_arguments(outcomes, guess_k, [[4] * budget] * 4, lookahead=2)
    arguments["done"][3] = 1
    after = look_up(arguments)
    assert after["hit"].tolist() == [1, 0, 0, 0]
    assert after["bad"].tolist() == [1, 1, 0, 0]
    assert after["spec_len"].tolist() == [2, 2, 2, 0]


def test_a_look_up_without_bad_rows_says_so() -> None:
    after = look_up(lookup_arguments([[1, 4], [1, 9]], [[0, 1]] * 2, [[4, 4]] * 2, lookahead=2))
    assert after["bad"].tolist() == [0, 0]


# verify -----------------------------------------------------------------------------------------------------------------------


def with_bad_targets(seed: int, vocabulary: int, tree: bool, **options: float) -> None:
    """Compare with the oracle a round in which two nodes of each slot are bad; each slot has another fault."""
    parents = random_trees(seed, 40, 8, 3) if tree else None

    def spoil(p_logits: Tensor) -> None:
        g = generator(seed)
        for s, slot in enumerate(p_logits):
            for node in torch.randint(0, slot.shape[0], (2,), generator=g).tolist():
                FAULTS[s % len(FAULTS)].spoil(slot[node])

    case = random_round(seed, vocabulary, parents, lookahead=5, spoil=spoil, **options)
    assert_verdicts(case)
    failed = [verdict is not None and verdict.token == -1 for verdict in case.expected]
    assert any(failed) and not all(failed)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("vocabulary", [24, 2_500])
@pytest.mark.parametrize("kind", [{}, {"greedy": 1.1}, {"undrawn": 1.1}, {"greedy": 1.1, "undrawn": 1.1}], ids=str)
def test_a_sequence_fails_at_the_first_bad_row_that_the_walk_stands_on(
    tree: bool, vocabulary: int, kind: dict[str, float]
) -> None:
    with_bad_targets(5, vocabulary, tree, **kind)


def spoil_greedy_rows(argmax: list[int], bad: list[int], spec: list[int], **changes: Tensor) -> dict[str, object]:
    """As `greedy_round`, with NaN in the rows `bad`."""
    arguments = greedy_round(argmax, spec, **changes)
    p_logits = arguments["p_logits"]
    p_logits[0, bad, 7] = NAN
    arguments["p_stats"] = ops.row_stats(p_logits[0], *sampling(len(argmax), 0.0))[None]
    return arguments


def test_a_bad_first_row_commits_nothing() -> None:
    arguments = spoil_greedy_rows([1, 2, 3, 4], [0], [1, 2, 3])
    assert decided(arguments) == {"committed": [], "path": [], "outcome": [0, -1], "done": True}
    _, after = verify(arguments)
    assert after["done"].tolist() == [ops.FAILED]
    for name in ("tokens", "length", "last_token"):
        assert torch.equal(after[name], arguments[name])


def test_a_bad_row_after_accepted_tokens_keeps_them() -> None:
    arguments = spoil_greedy_rows([1, 2, 3, 4], [2], [1, 2, 3])
    assert decided(arguments) == {"committed": [1, 2], "path": [0, 1], "outcome": [2, -1], "done": True}
    assert verify(arguments)[1]["done"].tolist() == [ops.FAILED]


def test_a_bad_row_beyond_the_accepted_tokens_does_not_count() -> None:
    said = decided(spoil_greedy_rows([1, 9, 3, 4], [2, 3], [1, 2, 3]))
    assert said == {"committed": [1, 9], "path": [0, 1], "outcome": [1, 9], "done": False}


def test_a_bad_row_beyond_spec_len_does_not_count() -> None:
    said = decided(spoil_greedy_rows([1, 2, 3, 4], [2, 3], [1, 2, 3], spec_len=1))
    assert said == {"committed": [1, 2], "path": [0, 1], "outcome": [1, 2], "done": False}


def test_a_sequence_that_ends_before_a_bad_row_has_not_failed() -> None:
    """By an accepted end-of-sequence token, or at its largest length."""
    arguments = spoil_greedy_rows([1, 2, 3, 4], [3], [1, 2, 3], eos=i32([2]))
    assert decided(arguments)["committed"] == [1, 2]
    assert verify(arguments)[1]["done"].tolist() == [1]
    arguments = spoil_greedy_rows([1, 2, 3, 4], [3], [1, 2, 3], max_length=i32([5 + 3]))
    assert decided(arguments)["committed"] == [1, 2, 3]
    assert verify(arguments)[1]["done"].tolist() == [1]


def test_a_bad_sibling_of_the_accepted_node_does_not_count() -> None:
    parents = i32([[-1, 0, 0, 0, 2, 2, 4]])
    said = decided(spoil_greedy_rows([7, 0, 1, 0, 0, 8, 0], [1, 3, 4, 6], [3, 7, 4, 6, 1, 0], parent=parents))
    assert said == {"committed": [7, 1, 8], "path": [0, 2, 5], "outcome": [2, 8], "done": False}


def test_a_failed_slot_is_left_unchanged_by_later_rounds() -> None:
    arguments = greedy_round([1, 2, 3, 4], [1, 2, 3], done=torch.full((1,), ops.FAILED, dtype=torch.uint8))
    _, after = verify(arguments)
    assert after["done"].tolist() == [ops.FAILED]
    assert after["outcome"][0, 0].tolist() == [-1, -1]
    assert torch.equal(after["tokens"], arguments["tokens"])


def test_a_missing_proposal_ends_a_chain_like_its_length() -> None:
    """A −1 that spec_len has not cut is no proposal, nor is any token after it: the same verdict, from the same noise."""
    cut = random_round(9, 24, lookahead=4).arguments
    cut["spec_len"] = cut["spec_len"].clamp_max(2)
    uncut = {name: None if value is None else value.clone() for name, value in cut.items()}
    uncut["spec_tokens"][:, 2] = -1
    uncut["spec_tokens"][:, 3] = 5
    uncut["spec_len"] = torch.where(cut["spec_len"] == 2, 4, cut["spec_len"]).int()
    (path, after), (uncut_path, uncut_after) = verify(cut), verify(uncut)
    assert torch.equal(path, uncut_path)
    assert all(torch.equal(value, uncut_after[name]) for name, value in after.items() if name != "report")
