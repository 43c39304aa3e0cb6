"""The speculation cache and its verification: fork, verify, rank_outcomes and cache_lookup, compared with the oracle and by
example."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from ops.backend import fewer, ssd_ops
from ops.cases import (
    NAN,
    assert_same_bits,
    children_of,
    copied,
    f32,
    fork,
    generator,
    i32,
    ints,
    random_parents,
    random_sampling,
    sample,
    sampling,
    tree_parents,
    verify_state,
    verify_written,
)
from ops.fork_check import assert_fork
from ssd import ops

# fork -------------------------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**20),
    lookahead=st.integers(0, 5),
    vocabulary=st.sampled_from([1, 2, 7, 64, 501, 2_500]),
    budget=st.integers(0, 12),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_forks_guesses_equal_the_oracles(seed: int, lookahead: int, vocabulary: int, budget: int, levels: int) -> None:
    """Few distinct logits make ties; small vocabularies leave guesses unused."""
    assert_fork(ssd_ops.fork, seed, lookahead, vocabulary, budget, levels)


@given(seed=st.integers(0, 2**20), levels=st.sampled_from([3, 1000]))
def test_fork_returns_target_ids(seed: int, levels: int) -> None:
    assert_fork(ssd_ops.fork, seed, 3, 9, 7, levels, trimmed=True)


def test_fork_excludes_the_drafted_token_at_its_position() -> None:
    logits = f32([[[9, 8, 7, 6], [9, 8, 7, 6], [9, 8, 7, 6]]])
    table = i32([[[0] * 3, [0] * 3, [2, 2, 2]]] * 2)
    guess, guess_k = fork(logits, i32([[0, 2]]), i32([2]), table, torch.zeros(1, dtype=torch.uint8), 6)
    assert guess.tolist() == [[1, 2, 0, 1, 0, 1]]  # after the last drafted token nothing is excluded
    assert guess_k.tolist() == [[0, 0, 1, 1, 2, 2]]


def test_fork_ranks_equal_logits_by_the_lower_id() -> None:
    table = i32([[[0] * 2, [3, 1]]] * 2)
    guess, _ = fork(torch.zeros(1, 2, 5), i32([[1]]), i32([1]), table, torch.zeros(1, dtype=torch.uint8), 4)
    assert guess.tolist() == [[0, 2, 3, 0]]


def test_fork_uses_the_table_for_hits_after_a_hit() -> None:
    table = i32([[[3, 0], [3, 0]], [[3, 0], [1, 2]]])
    logits, spec = torch.zeros(2, 2, 6), (i32([[5], [5]]), i32([1, 1]))
    _, guess_k = fork(logits, *spec, table, torch.tensor([0, 1], dtype=torch.uint8), 3)
    assert guess_k.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_fork_leaves_guesses_unused_if_there_are_too_few_outcomes() -> None:
    table = i32([[[4, 0], [2, 2]]] * 2)
    guess, guess_k = fork(torch.zeros(1, 2, 2), i32([[1]]), i32([1]), table, torch.zeros(1, dtype=torch.uint8), 4)
    assert guess.tolist() == [[0, 0, 0, 1]]
    assert guess_k.tolist() == [[0, -1, 1, 1]]


# verify, against the oracle ---------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """One call of verify, and the oracle's results."""

    arguments: dict[str, Tensor | None]
    expected: list[reference.Verdict | None]  # None: a done slot


def random_round(
    seed: int,
    vocabulary: int,
    parents: list[list[int]] | None = None,
    lookahead: int = 3,
    slots: int = 40,
    draft_vocabulary: int | None = None,
    greedy: float = 0.2,
    undrawn: float = 0.2,
    parity: int = 0,
    spoil: Callable[[Tensor], None] = lambda p_logits: None,
) -> Round:
    """Random p and q that are similar; proposals drawn from q, or chosen without drawing (δ). Padding and unused q are NaN.

    spoil: changes p's logits, [slots, nodes, vocabulary], after q is made from them.
    """
    g = generator(seed)
    chain = parents is None
    parents = (parents or [list(range(-1, lookahead))] * slots)[: fewer(slots if parents is None else len(parents))]
    slots, nodes = len(parents), len(parents[0])
    width, addresses = draft_vocabulary or vocabulary, 3
    id_of = torch.randperm(vocabulary, generator=g)[:width].sort().values
    draft_id_of = torch.full((vocabulary,), -1, dtype=torch.int32)
    draft_id_of[id_of] = torch.arange(width, dtype=torch.int32)

    settings = random_sampling(slots, g, greedy)
    spec_len = ints(0, nodes, (slots,), g)
    spec_len[: slots // 2] = nodes - 1
    q_address = ints(0, addresses, (slots,), g)
    q_address[torch.rand(slots, generator=g) < undrawn] = -1
    seeds = torch.randint(-(2**63), 2**63 - 1, (slots,), generator=g)
    length = ints(0, 6, (slots,), g)

    p_logits = 2 * torch.randn(slots, nodes, vocabulary, generator=g)
    drawn_from = 0.8 * p_logits[:, :, id_of] + 0.8 * torch.randn(slots, nodes, width, generator=g)
    spoil(p_logits)
    q_logits = torch.full((slots, 2, addresses, nodes, width), NAN)
    q_logits[torch.arange(slots), parity, q_address.clamp_min(0).long()] = drawn_from
    q_logits[q_address < 0] = NAN

    def stats(logits: Tensor) -> Tensor:
        rows = logits[0, ..., 0].numel()
        flat = ops.row_stats(logits.flatten(0, -2), *(x.repeat_interleave(rows) for x in settings))
        return flat.unflatten(0, logits.shape[:-1])

    p_stats, drawn_stats = stats(p_logits), stats(drawn_from)
    q_stats = torch.full((slots, 2, addresses, nodes, ops.STATS), NAN)
    q_stats[torch.arange(slots), parity, q_address.clamp_min(0).long()] = drawn_stats
    q_stats[q_address < 0] = NAN
    spec_tokens = torch.full((slots, nodes - 1), 2**30, dtype=torch.int32)
    expected: list[reference.Verdict | None] = []
    for s in range(slots):
        present = int(spec_len[s])
        parent = parents[s][: present + 1]
        for node in range(present + 1):
            if children := children_of(parent, node):
                at = (
                    length[s : s + 1] + 1 + node
                )  # not the position that a draft would use, but the oracle does not depend on it
                tokens = sample(
                    drawn_from[s, node, None], drawn_stats[s, node, None], seeds[s, None], at, len(children), id_of.int()
                )[0]
                if q_address[s] < 0:
                    tokens = torch.randperm(vocabulary, generator=g)[: len(children)].int()
                spec_tokens[s, [c - 1 for c in children][: len(tokens)]] = tokens
                spec_tokens[s, [c - 1 for c in children][len(tokens) :]] = -1
        one = [x[s].item() for x in settings]
        p = torch.stack([reference.distribution(row, *one) for row in p_logits[s, : present + 1]])
        q = torch.zeros(present, vocabulary, dtype=torch.float64)
        for node in range(present):
            q[node, id_of] = reference.distribution(drawn_from[s, node], *one)
        expected.append(
            reference.verify(
                p, q if q_address[s] >= 0 else None, spec_tokens[s, :present].tolist(), parent, int(seeds[s]), int(length[s])
            )
        )
        p_logits[s, present + 1 :] = NAN

    state = verify_state(slots, 6 + nodes + 1, length, ints(0, vocabulary, (slots,), g), seeds)
    state["parity"] = i32([parity])
    table = i32([row[: n + 1] + [0] * (nodes - n - 1) for row, n in zip(parents, spec_len.tolist(), strict=True)])
    arguments = {
        "p_logits": p_logits,
        "p_stats": p_stats,
        "q_logits": q_logits,
        "q_stats": q_stats,
        "q_address": q_address,
        "draft_id_of": None if draft_vocabulary is None else draft_id_of,
        "spec_tokens": spec_tokens,
        "spec_len": spec_len,
        "parent": None if chain else table,
        **state,
    }
    return Round(arguments, expected)


def verify(arguments: dict[str, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (path, the arguments after the call)."""
    after = copied(verify_written(*arguments["p_logits"].shape[:2]) | arguments)
    ssd_ops.verify(**after)
    return after["path"], {name: after[name] for name in ("tokens", "length", "last_token", "done", "outcome", "report")}


def verify_as_given(arguments: dict[str, Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
    """As `verify`, but `parent` is passed as it is: a clone of an expanded table is not expanded."""
    after = copied(verify_written(*arguments["p_logits"].shape[:2]) | arguments) | {"parent": arguments["parent"]}
    ssd_ops.verify(**after)
    return after["path"], {name: after[name] for name in ("tokens", "length", "last_token", "done", "outcome", "report")}


def assert_verdicts(case: Round) -> None:
    before = case.arguments
    path, after = verify(before)
    parity = int(before["parity"])
    for s, verdict in enumerate(case.expected):
        n = int(before["length"][s])
        failed = verdict.token == -1
        committed = [int(before["spec_tokens"][s, node - 1]) for node in verdict.accepted] + [verdict.token] * (not failed)
        nodes = [0, *verdict.accepted][: len(committed)]
        sequence = before["tokens"][s].tolist()
        sequence[n + 1 : n + 1 + len(committed)] = committed
        said = {
            "path": path[s].tolist(),
            "outcome": after["outcome"][s, parity].tolist(),
            "tokens": after["tokens"][s].tolist(),
            "length": int(after["length"][s]),
            "last_token": int(after["last_token"][s]),
            "done": int(after["done"][s]),
        }
        assert said == {
            "path": nodes + [-1] * (path.shape[1] - len(nodes)),
            "outcome": [len(verdict.accepted), verdict.token],
            "tokens": sequence,
            "length": n + len(committed),
            "last_token": sequence[n + len(committed)],
            "done": ops.FAILED if failed else 0,
        }, f"slot {s}"


def random_trees(seed: int, slots: int, nodes: int, max_children: int) -> list[list[int]]:
    g = generator(seed)
    return [random_parents(nodes, max_children, g) for _ in range(slots)]


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("vocabulary, lookahead, slots", [(6, 3, 120), (8, 5, 120), (8, 1, 60), (1000, 4, 24), (2500, 2, 6)])
def test_verify_equals_the_oracle_on_chains(vocabulary: int, lookahead: int, slots: int, parity: int) -> None:
    assert_verdicts(random_round(lookahead, vocabulary, lookahead=lookahead, slots=slots, parity=parity))


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize(
    "vocabulary, nodes, max_children, slots", [(7, 9, 3, 120), (8, 16, 5, 80), (1000, 8, 3, 16), (2500, 5, 4, 6)]
)
def test_verify_equals_the_oracle_on_trees(vocabulary: int, nodes: int, max_children: int, slots: int, parity: int) -> None:
    parents = random_trees(nodes, slots, nodes, max_children)
    assert_verdicts(random_round(nodes, vocabulary, parents, parity=parity))


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("vocabulary, draft_vocabulary", [(8, 5), (300, 170)])
def test_verify_maps_target_ids_to_the_drafts_columns(vocabulary: int, draft_vocabulary: int, tree: bool) -> None:
    parents = random_trees(5, 40, 8, 3) if tree else None
    assert_verdicts(random_round(3, vocabulary, parents, draft_vocabulary=draft_vocabulary))


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_undrawn_proposals_need_no_q(tree: bool) -> None:
    case = random_round(4, 7, random_trees(6, 80, 8, 3) if tree else None, slots=80, undrawn=1.1)
    case.arguments["q_logits"] = case.arguments["q_stats"] = None
    assert_verdicts(case)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_greedy_slots_need_no_q(tree: bool) -> None:
    case = random_round(5, 7, random_trees(7, 80, 8, 3) if tree else None, slots=80, greedy=1.1, undrawn=0)
    case.arguments["q_logits"] = case.arguments["q_stats"] = None
    assert_verdicts(case)


@given(seed=st.integers(0, 2**20), lookahead=st.integers(0, 6), vocabulary=st.sampled_from([6, 90]), trimmed=st.booleans())
def test_a_chain_equals_a_tree_with_one_child_per_node(seed: int, lookahead: int, vocabulary: int, trimmed: bool) -> None:
    chain = random_round(
        seed, vocabulary, lookahead=lookahead, slots=8, draft_vocabulary=vocabulary - 2 if trimmed else None
    ).arguments
    tree = {**chain, "parent": torch.arange(-1, lookahead, dtype=torch.int32).repeat(len(chain["spec_len"]), 1)}
    (chain_path, chain_state), (tree_path, tree_state) = verify(chain), verify(tree)
    assert_same_bits(tree_path, chain_path)
    for name, value in chain_state.items():
        assert_same_bits(tree_state[name], value)


def test_verify_without_proposals_draws_from_the_target() -> None:
    """This is autoregressive decoding, K = 0."""
    assert_verdicts(random_round(6, 9, lookahead=0, slots=100))


def test_a_missing_node_is_never_accepted() -> None:
    """At temperature 1 with top_k 2, a node with room for four children has two; the other two and their subtrees are
    missing."""
    parents = tree_parents((4, 2))
    g = generator(12)
    slots, nodes = fewer(60), len(parents)
    logits = torch.randn(slots, nodes, 6, generator=g)
    settings = sampling(slots * nodes, 1.0, 2)
    stats = ops.row_stats(logits.flatten(0, 1), *settings).unflatten(0, (slots, nodes))
    spec = torch.full((slots, nodes - 1), -1, dtype=torch.int32)
    spec[:, :2] = logits[:, 0].topk(2).indices.int()  # without replacement, both are drawn, in either order
    state = verify_state(
        slots, 12, torch.zeros(slots, dtype=torch.int32), torch.zeros(slots, dtype=torch.int32), torch.arange(slots)
    )
    arguments = {
        "p_logits": logits,
        "p_stats": stats,
        "q_logits": logits[:, None, None].repeat(1, 2, 1, 1, 1),
        "q_stats": stats[:, None, None].repeat(1, 2, 1, 1, 1),
        "q_address": torch.zeros(slots, dtype=torch.int32),
        "draft_id_of": None,
        "spec_tokens": spec,
        "spec_len": torch.full((slots,), nodes - 1, dtype=torch.int32),
        "parent": i32([parents]).repeat(slots, 1),
        **state,
    }
    path, after = verify(arguments)
    assert set(path[:, 1].tolist()) <= {1, 2}
    assert torch.equal(path[:, 2], torch.full((slots,), -1, dtype=torch.int32))
    assert int(after["tokens"][:, 1].min()) >= 0


# verify, by example: greedy slots over ten ids --------------------------------------------------------------------------------


def greedy_round(argmax: list[int], spec: list[int], spec_len: int | None = None, length: int = 4, **changes: Tensor) -> dict:
    """One slot whose target has argmax[i] after node i."""
    nodes = len(argmax)
    p_logits = torch.nn.functional.one_hot(torch.tensor([argmax]), 10).float()
    state = verify_state(1, length + nodes + 1, i32([length]), i32([5]), torch.tensor([3]))
    return {
        "p_logits": p_logits,
        "p_stats": ops.row_stats(p_logits[0], *sampling(nodes, 0.0))[None],
        "q_logits": None,
        "q_stats": None,
        "q_address": i32([0]),
        "draft_id_of": None,
        "spec_tokens": i32([spec]),
        "spec_len": i32([len(spec) if spec_len is None else spec_len]),
        "parent": None,
        **state,
        **changes,
    }


def decided(arguments: dict[str, Tensor | None]) -> dict[str, object]:
    path, after = verify(arguments)
    n, m = int(arguments["length"]), int(after["length"])
    untouched = [*range(n + 1), *range(m + 1, after["tokens"].shape[1])]
    assert torch.equal(after["tokens"][:, untouched], arguments["tokens"][:, untouched])
    assert int(after["last_token"]) == int(after["tokens"][0, m])
    return {
        "committed": after["tokens"][0, n + 1 : m + 1].tolist(),
        "path": [i for i in path[0].tolist() if i >= 0],
        "outcome": after["outcome"][0, int(arguments["parity"])].tolist(),
        "done": bool(after["done"]),
    }


def test_all_accepted_commits_the_bonus_token() -> None:
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3]))
    assert said == {"committed": [1, 2, 3, 4], "path": [0, 1, 2, 3], "outcome": [3, 4], "done": False}


def test_a_rejection_commits_the_recovery_token() -> None:
    said = decided(greedy_round([1, 9, 3, 4], [1, 2, 3]))
    assert said == {"committed": [1, 9], "path": [0, 1], "outcome": [1, 9], "done": False}


def test_rows_beyond_spec_len_are_padding() -> None:
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3], spec_len=1))
    assert said == {"committed": [1, 2], "path": [0, 1], "outcome": [1, 2], "done": False}


def test_a_greedy_tree_walks_to_the_child_that_equals_the_argmax() -> None:
    parents = i32([[-1, 0, 0, 0, 2, 2, 4]])
    said = decided(greedy_round([7, 0, 1, 0, 0, 8, 0], [3, 7, 4, 6, 1, 0], parent=parents))
    assert said == {"committed": [7, 1, 8], "path": [0, 2, 5], "outcome": [2, 8], "done": False}


def test_decoding_ends_at_an_accepted_end_of_sequence() -> None:
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3], eos=i32([2])))
    assert (said["committed"], said["path"], said["done"]) == ([1, 2], [0, 1], True)


def test_decoding_ends_at_an_end_of_sequence_drawn_after_a_rejection() -> None:
    said = decided(greedy_round([1, 9, 3, 4], [1, 2, 3], eos=i32([9])))
    assert (said["committed"], said["done"]) == ([1, 9], True)


def test_any_of_several_ids_ends_a_sequence() -> None:
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3], eos=i32([8, 3])))
    assert (said["committed"], said["done"]) == ([1, 2, 3], True)


def test_a_rejected_end_of_sequence_ends_nothing() -> None:
    said = decided(greedy_round([1, 9, 3, 4], [1, 2, 3], eos=i32([2])))
    assert (said["committed"], said["done"]) == ([1, 9], False)


def test_ignore_eos_continues_past_an_end_of_sequence() -> None:
    ignore = torch.ones(1, dtype=torch.uint8)
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3], eos=i32([2, 4]), ignore_eos=ignore))
    assert (said["committed"], said["done"]) == ([1, 2, 3, 4], False)


@pytest.mark.parametrize("room", [1, 2, 3, 4, 5])
def test_decoding_ends_at_max_length(room: int) -> None:
    said = decided(greedy_round([1, 2, 3, 4], [1, 2, 3], length=4, max_length=i32([5 + room])))
    assert (said["committed"], said["done"]) == ([1, 2, 3, 4][:room], room <= 4)


@pytest.mark.parametrize("parity", [0, 1])
def test_only_this_rounds_half_of_the_outcome_is_written(parity: int) -> None:
    arguments = greedy_round([1, 2, 3, 4], [1, 2, 3], parity=i32([parity]))
    _, after = verify(arguments)
    assert after["outcome"][0, parity].tolist() == [3, 4]
    assert torch.equal(after["outcome"][0, 1 - parity], arguments["outcome"][0, 1 - parity])


def test_a_done_slot_is_left_unchanged() -> None:
    arguments = greedy_round([1, 2, 3, 4], [1, 2, 3], done=torch.ones(1, dtype=torch.uint8))
    path, after = verify(arguments)
    assert after["outcome"][0, 0].tolist() == [-1, -1]
    assert path.tolist() == [[-1, -1, -1, -1]]
    for name in ("tokens", "length", "last_token", "done"):
        assert torch.equal(after[name], arguments[name])


def test_a_tree_fits_if_its_deepest_path_fits() -> None:
    """The table `tokens` is max_context + K + 1 wide, where K is the tree's depth, not its number of nodes."""
    parents = i32([[-1, 0, 0, 0, 0, 1]])
    tokens = torch.full((1, 4 + 2 + 2), -7, dtype=torch.int32)
    said = decided(greedy_round([1, 2, 0, 0, 0, 3], [1, 4, 5, 6, 2], parent=parents, tokens=tokens))
    assert said["committed"] == [1, 2, 3]


# verify, the report -----------------------------------------------------------------------------------------------------------


def reported(newest: int, **changes: Tensor) -> list[int]:
    """The report of a slot with the tokens 0, 10, 20, 30, 40, which accepts 1 of its 3 proposals and continues with 9."""
    arguments = greedy_round([1, 9, 3, 4], [1, 2, 3], length=4) | verify_written(1, 4, newest) | changes
    arguments["tokens"][0, :5] = i32([0, 10, 20, 30, 40])
    return verify(arguments)[1]["report"][0].tolist()


def test_a_report_has_the_state_after_the_commit_and_the_newest_tokens() -> None:
    hit = torch.ones(1, dtype=torch.uint8)
    assert reported(4) == [6, 0, 1, 3, 0, 0, 30, 40, 1, 9]
    assert reported(1, hit=hit, bad=i32([1]), eos=i32([9])) == [6, 1, 1, 3, 1, 1, 9]


def test_a_report_says_what_was_accepted_even_if_it_did_not_fit() -> None:
    assert reported(3, max_length=i32([6])) == [5, 1, 1, 3, 0, 0, 30, 40, 1]


def test_a_report_of_a_short_sequence_begins_with_its_first_token() -> None:
    assert reported(9) == [6, 0, 1, 3, 0, 0, 0, 0, 0, 10, 20, 30, 40, 1, 9]


def test_a_done_slot_reports_its_state_and_that_nothing_was_decided() -> None:
    assert reported(2, done=torch.ones(1, dtype=torch.uint8), spec_len=i32([0])) == [4, 1, -1, 0, 0, 0, 30, 40]


def test_all_slots_may_share_one_table_of_parents() -> None:
    parents = tree_parents((2, 2))
    case = random_round(9, 7, [parents] * 24)
    whole = case.arguments | {"parent": i32([parents]).repeat(len(case.expected), 1)}
    shared = case.arguments | {"parent": i32(parents).expand(len(case.expected), -1)}
    (path, state), (shared_path, shared_state) = verify_as_given(whole), verify_as_given(shared)
    assert torch.equal(path, shared_path) and all(torch.equal(state[name], shared_state[name]) for name in state)


# rank_outcomes ----------------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**20),
    lookahead=st.integers(0, 4),
    vocabulary=st.sampled_from([1, 2, 9, 64, 2_500]),
    levels=st.sampled_from([1, 3, 1000]),
    trimmed=st.booleans(),
    parity=st.integers(0, 1),
)
def test_ranks_equal_the_oracles(seed: int, lookahead: int, vocabulary: int, levels: int, trimmed: bool, parity: int) -> None:
    """Few distinct logits make ties. With `trimmed`, the draft lacks two thirds of the target's tokens."""
    g, slots, budget = generator(seed), 8, 3
    target = 3 * vocabulary if trimmed else vocabulary
    known = torch.randperm(target, generator=g)[:vocabulary].sort().values
    draft_id_of = torch.full((target,), -1, dtype=torch.int32)
    draft_id_of[known] = torch.arange(vocabulary, dtype=torch.int32)
    logits = ints(0, levels, (slots, lookahead + 1, vocabulary), g).float()
    spec_tokens, spec_len = ints(0, target, (slots, lookahead), g), ints(0, lookahead + 1, (slots,), g)
    outcome = torch.full((slots, 2, 2), -1, dtype=torch.int32)
    outcome[:, parity] = torch.stack([ints(-1, lookahead + 1, (slots,), g), ints(0, target, (slots,), g)], dim=1)
    hit, done = (ints(0, 2, (slots,), g).to(torch.uint8) for _ in range(2))
    length, draft_context = ints(0, 9, (slots,), g), 7
    seen = torch.full((slots, 4), -9, dtype=torch.int32)
    columns = draft_id_of if trimmed else None
    ops.rank_outcomes(
        logits, outcome, i32([parity]), spec_tokens, spec_len, hit, done, length, columns, budget, draft_context, seen
    )
    for s in range(slots):
        node, token = outcome[s, parity].tolist()
        expected = [-1] * 4
        if node >= 0 and not done[s] and length[s] < draft_context:
            rank = reference.rank_outcome(
                logits[s],
                node,
                token,
                spec_tokens[s].tolist(),
                int(spec_len[s]),
                draft_id_of.tolist() if trimmed else None,
                budget,
            )
            expected = [int(hit[s]), int(spec_len[s]), node, rank]
        assert seen[s].tolist() == expected, f"slot {s}"


def rank(token: int, node: int = 0, spec_len: int = 1, draft_id_of: Tensor | None = None, budget: int = 2) -> int:
    """The rank of a token where the draft prefers 2, 1, 0, 3 and has proposed 1."""
    logits, byte = f32([[[5, 6, 7, 4], [5, 6, 7, 4]]]), torch.zeros(1, dtype=torch.uint8)
    outcome, seen = i32([[[node, token], [-1, -1]]]), torch.zeros(1, 4, dtype=torch.int32)
    tables = (outcome, i32([0]), i32([[1]]), i32([spec_len]), byte, byte, i32([0]), draft_id_of)
    ops.rank_outcomes(logits, *tables, budget, ops.NO_LIMIT, seen)
    return int(seen[0, 3])


def test_a_rank_leaves_out_the_drafted_token_where_it_was_rejected() -> None:
    assert [rank(token) for token in (2, 0, 3)] == [0, 1, 2]
    assert [rank(token, node=1) for token in (2, 1, 0, 3)] == [0, 1, 2, 3]  # after the last proposal nothing is left out
    assert [rank(token, spec_len=0) for token in (2, 1, 0, 3)] == [0, 1, 2, 3]  # there was none


def test_a_rank_is_the_place_of_the_guess_in_fork() -> None:
    table = i32([[[3, 0], [3, 0]]] * 2)
    guess, _ = fork(f32([[[5, 6, 7, 4]] * 2]), i32([[1]]), i32([1]), table, torch.zeros(1, dtype=torch.uint8), 3)
    assert [rank(token) for token in guess[0].tolist()] == [0, 1, 2]


@pytest.mark.parametrize("spoilt", [NAN, -math.inf])
def test_a_token_that_is_never_guessed_ranks_after_all_guesses(spoilt: float) -> None:
    """It is masked, or its logit is not a number."""
    byte, seen = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.int32)
    tables = (i32([[[0, 2], [-1, -1]]]), i32([0]), torch.zeros(1, 0, dtype=torch.int32), i32([0]), byte, byte, i32([0]))
    ops.rank_outcomes(f32([[[5, 6, spoilt, 4]]]), *tables, None, 3, ops.NO_LIMIT, seen)
    assert seen.tolist() == [[0, 0, 0, 4]]


@pytest.mark.parametrize("budget, expected", [(2, 4), (9, 9)])
def test_a_token_that_the_draft_lacks_ranks_after_all_guesses(budget: int, expected: int) -> None:
    assert rank(5, draft_id_of=i32([0, 1, 2, 3, -1, -1, -1]), budget=budget) == expected
    assert rank(4, budget=budget) == expected


# cache_lookup -----------------------------------------------------------------------------------------------------------------


def lookup_arguments(
    outcome: list[list[int]], guess_k: list[list[int]], guess: list[list[int]], lookahead: int, parity: int = 0
) -> dict[str, Any]:
    slots, budget = len(outcome), len(guess[0])
    mailbox = torch.full((slots, 2, 2), -1, dtype=torch.int32)
    mailbox[:, parity] = i32(outcome)
    return {
        "outcome": mailbox,
        "guess": i32(guess).reshape(slots, budget),
        "guess_k": i32(guess_k).reshape(slots, budget),
        "branch_tokens": torch.arange(slots * budget * lookahead, dtype=torch.int32).reshape(slots, budget, lookahead),
        "length": torch.full((slots,), 20, dtype=torch.int32),
        "last_token": torch.full((slots,), 6, dtype=torch.int32),
        "max_length": torch.full((slots,), 1000, dtype=torch.int32),
        "done": torch.zeros(slots, dtype=torch.uint8),
        "nodes_within": None,
        "draft_context": ops.NO_LIMIT,
        "parity": i32([parity]),
        "draft_length": torch.full((slots,), -9, dtype=torch.int32),
        "draft_last_token": torch.full((slots,), -9, dtype=torch.int32),
        "spec_tokens": torch.full((slots, lookahead), -9, dtype=torch.int32),
        "spec_len": torch.full((slots,), -9, dtype=torch.int32),
        "hit": torch.full((slots,), 9, dtype=torch.uint8),
        "missed": torch.full((slots,), 9, dtype=torch.uint8),
        "q_address": torch.full((slots,), -9, dtype=torch.int32),
        "bad": torch.full((slots,), -9, dtype=torch.int32),
    }


def look_up(arguments: dict[str, Any]) -> dict[str, Any]:
    after = copied(arguments)
    ssd_ops.cache_lookup(**after)
    return after


def test_a_hit_writes_its_branch_as_the_speculation() -> None:
    after = look_up(lookup_arguments([[1, 4]], [[0, 1, 1]], [[4, 3, 4]], lookahead=2))
    assert (int(after["hit"]), int(after["q_address"]), int(after["spec_len"])) == (1, 2, 2)
    assert after["spec_tokens"].tolist() == [[4, 5]]


@pytest.mark.parametrize("outcome", [[0, 3], [1, 5], [2, 4]])
def test_a_miss_is_left_to_the_fallback(outcome: list[int]) -> None:
    after = look_up(lookup_arguments([outcome], [[0, 1, 1]], [[4, 3, 4]], lookahead=2))
    assert (int(after["hit"]), int(after["q_address"]), int(after["spec_len"])) == (0, 3, 2)


def test_an_empty_cache_always_misses() -> None:
    after = look_up(lookup_arguments([[1, 4], [0, 0]], [[], []], [[], []], lookahead=3))
    assert after["hit"].tolist() == [0, 0]
    assert after["q_address"].tolist() == [0, 0]
    assert after["spec_len"].tolist() == [3, 3]


def test_an_unused_guess_is_never_hit() -> None:
    after = look_up(lookup_arguments([[-1, 0]], [[-1, -1]], [[0, 0]], lookahead=2))
    assert int(after["hit"]) == 0


@pytest.mark.parametrize("parity", [0, 1])
def test_the_outcome_is_read_at_the_parity_and_the_parity_flips(parity: int) -> None:
    after = look_up(lookup_arguments([[1, 4]], [[1]], [[4]], lookahead=2, parity=parity))
    assert int(after["hit"]) == 1
    assert after["parity"].tolist() == [1 - parity]


@pytest.mark.parametrize("left, room", [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 3)])
def test_the_speculation_shrinks_at_the_end_of_a_sequence(left: int, room: int) -> None:
    """With `left` tokens to go, a round commits at most that many, so one fewer are speculated."""
    arguments = lookup_arguments([[1, 4]], [[1]], [[4]], lookahead=3)
    arguments["max_length"] = arguments["length"] + 1 + left
    assert int(look_up(arguments)["spec_len"]) == room


@pytest.mark.parametrize("left, room", [(0, 0), (1, 0), (2, 3), (3, 9), (4, 15), (9, 15)])
def test_only_whole_levels_of_a_tree_are_proposed(left: int, room: int) -> None:
    """Levels of 3, 6 and 6 nodes; the tree's deepest path and the token after it must fit."""
    arguments = lookup_arguments([[1, 4]], [[]], [[]], lookahead=15) | {"nodes_within": i32([0, 3, 9, 15])}
    arguments["max_length"] = arguments["length"] + 1 + left
    assert int(look_up(arguments)["spec_len"]) == room


def test_slots_without_a_hit_and_with_room_for_proposals_have_missed() -> None:
    arguments = lookup_arguments([[1, 4], [0, 4], [0, 4], [0, 4]], [[1]] * 4, [[4]] * 4, lookahead=2)
    arguments["done"][2] = 1
    arguments["max_length"][3] = 22
    after = look_up(arguments)
    assert (after["hit"].tolist(), after["missed"].tolist()) == ([1, 0, 0, 0], [0, 1, 0, 0])


@pytest.mark.parametrize("read, room", [(0, 3), (4, 3), (5, 3), (6, 2), (7, 1)])
def test_the_speculation_shrinks_at_the_end_of_the_drafts_context(read: int, room: int) -> None:
    """The draft was trained for 8 tokens. Proposal i is drafted from the token at position read + i."""
    for token in (4, 5):  # a hit, a miss
        arguments = lookup_arguments([[1, token]], [[1]], [[4]], lookahead=3) | {"draft_context": 8}
        arguments["length"][:] = read
        after = look_up(arguments)
        assert (int(after["spec_len"]), int(after["draft_length"])) == (room, read)
        assert (int(after["hit"]), int(after["missed"])) == ((1, 0) if token == 4 else (0, 1))


@pytest.mark.parametrize("read", [8, 9, 20])
def test_beyond_the_drafts_context_there_is_neither_a_hit_nor_a_miss(read: int) -> None:
    arguments = lookup_arguments([[1, 4], [1, 4]], [[1], [-2]], [[4], [0]], lookahead=3) | {"draft_context": 8}
    arguments["length"][:] = read
    after = look_up(arguments)
    for name in ("spec_len", "hit", "missed", "draft_length", "bad"):
        assert after[name].tolist() == [0, 0], name


def test_a_done_slot_gets_no_speculation() -> None:
    arguments = lookup_arguments([[1, 4]], [[1]], [[4]], lookahead=3)
    arguments["done"][:] = 1
    after = look_up(arguments)
    assert (int(after["hit"]), int(after["spec_len"])) == (0, 0)


def test_the_drafts_copy_of_the_state_is_latched() -> None:
    after = look_up(lookup_arguments([[1, 4], [0, 1]], [[1], [0]], [[4], [2]], lookahead=2))
    assert torch.equal(after["draft_length"], after["length"])
    assert torch.equal(after["draft_last_token"], after["last_token"])


@given(seed=st.integers(0, 2**20), budget=st.integers(0, 9), lookahead=st.integers(1, 5), parity=st.integers(0, 1))
def test_cache_lookup_equals_the_oracle(seed: int, budget: int, lookahead: int, parity: int) -> None:
    g = generator(seed)
    slots = 30
    outcomes = torch.stack([ints(0, 3, (slots,), g), ints(0, 4, (slots,), g)], dim=1)
    guess_k, guess = ints(-1, 3, (slots, budget), g), ints(0, 4, (slots, budget), g)
    guess_k[::5, : budget // 2] = -2  # the guesses after a bad row
    arguments = lookup_arguments(outcomes.tolist(), guess_k.tolist(), guess.tolist(), lookahead, parity)
    missing = torch.rand(slots, budget, lookahead, generator=g) < 0.2  # after a bad row
    arguments["branch_tokens"] = torch.where(missing, -1, arguments["branch_tokens"])
    arguments["length"], arguments["max_length"] = ints(0, 9, (slots,), g), ints(1, 15, (slots,), g)
    arguments["done"], arguments["draft_context"] = ints(0, 2, (slots,), g).to(torch.uint8), int(ints(5, 13, (), g))
    after = look_up(arguments)
    for s in range(slots):
        pairs = list(zip(guess_k[s].tolist(), guess[s].tolist(), strict=True))
        limits = (int(arguments["length"][s]), int(arguments["max_length"][s]), bool(arguments["done"][s]))
        limits = (*limits, arguments["draft_context"])
        branches = arguments["branch_tokens"][s].tolist() or [[0] * lookahead]
        branch, length, bad = reference.lookup(tuple(outcomes[s].tolist()), pairs, branches, *limits)
        assert int(after["spec_len"][s]) == length
        assert int(after["bad"][s]) == bad
        assert bool(after["hit"][s]) == (branch >= 0)
        assert bool(after["missed"][s]) == (branch < 0 and length > 0)
        if branch >= 0:
            assert int(after["q_address"][s]) == branch
            assert after["spec_tokens"][s].tolist() == arguments["branch_tokens"][s, branch].tolist()
        elif not limits[2]:
            assert int(after["q_address"][s]) == budget
