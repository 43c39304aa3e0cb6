"""tree_rows and branch_rows: the rows of a forward pass, compared with the oracle and by example."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from ops.cases import generator, i32, ints, random_parents
from ssd import ops

NAMES = ("ids", "positions", "kv_slots", "row_seq", "prefix_len", "suffix_slots", "suffix_len")
Described = list[tuple[int, tuple[int, int, int, int, list[int]]]]


def described(rows: tuple[Tensor, ...]) -> Described:
    """(sequence, what `reference.tree_row` says of a row) for every row."""
    columns = dict(zip(NAMES, rows, strict=True))
    assert {x.dtype for x in rows} == {torch.int32}
    said = []
    for row in range(len(columns["ids"])):
        token, position, slot, sequence, prefix, seen = (
            int(columns[name][row]) for name in ("ids", "positions", "kv_slots", "row_seq", "prefix_len", "suffix_len")
        )
        suffix = columns["suffix_slots"][row].tolist()
        assert suffix[seen:] == [0] * (len(suffix) - seen)
        said.append((sequence, (token, position, slot, prefix, suffix[:seen])))
    return said


@given(
    seed=st.integers(0, 2**20),
    nodes=st.integers(1, 9),
    max_children=st.integers(1, 4),
    page_size=st.sampled_from([1, 4, 16]),
    chain=st.booleans(),
    data=st.data(),
)
def test_tree_rows_equal_the_oracles(
    seed: int, nodes: int, max_children: int, page_size: int, chain: bool, data: st.DataObject
) -> None:
    """Any nodes in a row of any chain or tree, with the token before the root or without it; an empty sequence too."""
    g, slots, longest = generator(seed), 3, 20
    chain = chain or nodes == 1
    parents = random_parents(nodes, max_children, g)
    first = data.draw(st.integers(-1, nodes - 1))
    count = data.draw(st.integers(0, nodes - first))
    pages = -(-(longest + nodes) // page_size)
    page_table = torch.randperm(slots * pages, generator=g).int().view(slots, pages)
    tokens, spec_tokens = ints(0, 99, (slots, longest), g), ints(0, 99, (slots, nodes - 1), g)
    length = ints(0, longest, (slots,), g)
    length[0] = 0
    tree = (None, 0) if chain else (i32(parents), nodes - 1)
    rows = ops.tree_rows(tokens, spec_tokens, length, page_table, tree[0], page_size, first, count, tree[1])
    shapes = [(slots * count,)] * 5 + [(slots * count, tree[1]), (slots * count,)]
    assert [tuple(x.shape) for x in rows] == shapes
    assert described(rows) == [
        (
            s,
            reference.tree_row(
                tokens[s], spec_tokens[s], int(length[s]), page_table[s], None if chain else parents, page_size, node
            ),
        )
        for s in range(slots)
        for node in range(first, first + count)
    ]


TOKENS, SPECULATED, PAGES = i32([[10, 11, 12, 13, 99]]), i32([[21, 22, 23]]), i32([[5, 2, 7]])


def rows_of(parent: list[int] | None, first: int, count: int, length: int = 3) -> dict[str, list[object]]:
    tree = (None, 0) if parent is None else (i32(parent), 2)
    rows = ops.tree_rows(TOKENS, SPECULATED, i32([length]), PAGES, tree[0], 4, first, count, tree[1])
    return {name: x.tolist() for name, x in zip(NAMES, rows, strict=True)}


def test_a_chain_is_the_last_token_and_the_proposals_after_it() -> None:
    rows = rows_of(None, 0, 4)
    assert rows["ids"] == [13, 21, 22, 23]
    assert rows["positions"] == [3, 4, 5, 6]
    assert rows["kv_slots"] == [5 * 4 + 3, 2 * 4, 2 * 4 + 1, 2 * 4 + 2]
    assert rows["prefix_len"] == [4, 5, 6, 7]
    assert rows["suffix_len"] == [0, 0, 0, 0]


def test_the_node_before_the_root_is_the_token_before_the_last() -> None:
    rows = rows_of(None, -1, 2)
    assert (rows["ids"], rows["positions"], rows["prefix_len"]) == ([12, 13], [2, 3], [3, 4])
    assert rows_of([-1, 0, 0, 1], -1, 2)["ids"] == [12, 13]


def test_the_rows_of_a_slot_without_a_sequence_are_written_to_the_null_page() -> None:
    """Its table may name pages that other sequences share: those of one that has outgrown the draft's context."""
    rows = rows_of(None, -1, 3, length=0)
    assert (rows["ids"], rows["positions"], rows["kv_slots"]) == ([10, 10, 21], [0, 0, 1], [0, 0, 0])
    assert rows_of([-1, 0, 0, 2], 0, 4, length=0)["suffix_slots"] == [[0, 0]] * 4


def test_siblings_have_one_position_and_see_only_their_own_ancestors() -> None:
    rows = rows_of([-1, 0, 0, 2], 0, 4)  # nodes 1 and 2 are the root's children, node 3 is node 2's
    assert rows["positions"] == [3, 4, 4, 5]
    assert rows["prefix_len"] == [4, 4, 4, 4]
    assert rows["suffix_len"] == [0, 1, 1, 2]
    assert rows["suffix_slots"] == [[0, 0], [8, 0], [9, 0], [9, 10]]


@given(seed=st.integers(0, 2**20), budget=st.integers(0, 5), lookahead=st.integers(1, 5), data=st.data())
def test_branch_rows_equal_the_oracles(seed: int, budget: int, lookahead: int, data: st.DataObject) -> None:
    g, slots = generator(seed), 3
    step = data.draw(st.integers(0, lookahead - 1))
    guess, guess_k = ints(0, 99, (slots, budget), g), ints(-1, lookahead + 1, (slots, budget), g)
    branch_tokens, scratch = (ints(0, 99, (slots, budget, lookahead), g) for _ in range(2))
    length = ints(0, 99, (slots,), g)
    rows = ops.branch_rows(guess, guess_k, branch_tokens, length, scratch, step)
    assert described(rows) == [
        (
            s,
            reference.branch_row(
                int(guess[s, b]), int(guess_k[s, b]), branch_tokens[s, b].tolist(), int(length[s]), scratch[s, b].tolist(), step
            ),
        )
        for s in range(slots)
        for b in range(budget)
    ]


@pytest.mark.parametrize("step, token", [(0, 50), (1, 61), (2, 62)])
def test_a_branch_goes_on_with_the_token_that_the_step_before_drew(step: int, token: int) -> None:
    """The guess follows node 2 of a trunk whose root is at position 6, so it is at position 9."""
    rows = ops.branch_rows(i32([[50]]), i32([[2]]), i32([[[61, 62, 63]]]), i32([6]), i32([[[70, 71, 72]]]), step)
    named = {name: x.tolist() for name, x in zip(NAMES, rows, strict=True)}
    assert (named["ids"], named["positions"], named["prefix_len"]) == ([token], [9 + step], [9])
    assert (named["kv_slots"], named["suffix_slots"]) == ([70 + step], [[70, 71, 72][: step + 1]])
