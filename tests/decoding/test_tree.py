"""A tree's tables, rows and moves, compared with a walk through its nodes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ops.cases import children_of, generator, i32, ints, tree_parents
from ssd.decoding.state import SequenceState
from ssd.decoding.tree import Tree
from ssd.kv.cache import PAGE_SIZE, Rows

CPU = torch.device("cpu")
PAGES = 6  # pages per sequence

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple).filter(lambda shape: len(tree_parents(shape)) <= 64)


def ancestors(parents: list[int], node: int) -> list[int]:
    """The path from the root's child down to the node itself."""
    path = []
    while node > 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def sequences(lengths: list[int], seed: int = 0) -> SequenceState:
    """Sequences of these lengths, in randomly ordered pages. Page 0 is the null page."""
    state = SequenceState.allocate(len(lengths), 64, PAGES, (), CPU)
    pages = 1 + torch.randperm(len(lengths) * PAGES, generator=generator(seed))
    state.page_table.copy_(pages.view(len(lengths), PAGES))
    state.length.copy_(i32(lengths))
    return state


def place(state: SequenceState, slot: int, position: int) -> int:
    return int(state.page_table[slot, position // PAGE_SIZE]) * PAGE_SIZE + position % PAGE_SIZE


# Tables -----------------------------------------------------------------------------------------------------------------------


@given(shape=shapes)
def test_nodes_are_numbered_breadth_first(shape: tuple[int, ...]) -> None:
    tree = Tree(shape, CPU)
    assert tree.parent.tolist() == tree_parents(shape)
    assert (tree.nodes, tree.depth) == (len(tree_parents(shape)), len(shape))


@given(shape=shapes)
def test_a_level_has_the_children_of_the_level_before(shape: tuple[int, ...]) -> None:
    tree, parents = Tree(shape, CPU), tree_parents(shape)
    level = [0]
    for nodes in tree.levels:
        assert list(range(nodes.start, nodes.stop)) == level
        level = [child for node in level for child in children_of(parents, node)]
    assert level == []  # the last level has no children


@given(shape=shapes)
def test_the_nodes_within_a_depth_have_at_most_that_many_ancestors(shape: tuple[int, ...]) -> None:
    """Their number is the speculation's length for a sequence with room for that many tokens."""
    tree, parents = Tree(shape, CPU), tree_parents(shape)
    if tree.nodes_within is None:
        assert tree.is_chain  # one node per level
        return
    for depth, count in enumerate(tree.nodes_within.tolist()):
        within = [node for node in range(1, tree.nodes) if len(ancestors(parents, node)) <= depth]
        assert within == list(range(1, count + 1))


def test_a_chain_is_a_tree_with_one_child_per_node() -> None:
    tree = Tree((1, 1, 1), CPU)
    assert tree.parent.tolist() == [-1, 0, 1, 2]
    assert tree.is_chain and tree.nodes_within is None and tree.parent_table(3) is None


# Rows -------------------------------------------------------------------------------------------------------------------------


def rows_of(tree: Tree, state: SequenceState, nodes: slice) -> Rows:
    spec_tokens = ints(0, 100, (len(state.done), tree.nodes - 1), generator(1))
    return tree.rows(state, spec_tokens, state.length, range(nodes.start, nodes.stop))


def each_row(tree: Tree, state: SequenceState, nodes: slice) -> list[tuple[int, int, int]]:
    """Yields (row, slot, node) in the order of the rows."""
    pairs = [(slot, node) for slot in range(len(state.done)) for node in range(nodes.start, nodes.stop)]
    return [(row, slot, node) for row, (slot, node) in enumerate(pairs)]


@pytest.fixture(params=["all", "a level"])
def part(request: pytest.FixtureRequest) -> tuple[Tree, slice]:
    """The rows that the target verifies, and the rows that the draft runs."""
    tree = Tree((3, 2, 1), CPU)
    return tree, slice(0, tree.nodes) if request.param == "all" else tree.levels[2]


LENGTHS = [1, 7, 30]


def test_a_rows_position_is_the_roots_plus_its_depth(part: tuple[Tree, slice]) -> None:
    (tree, nodes), state = part, sequences(LENGTHS)
    rows, parents = rows_of(tree, state, nodes), tree_parents(tree.children)
    for row, slot, node in each_row(tree, state, nodes):
        assert int(rows.positions[row]) == LENGTHS[slot] + len(ancestors(parents, node))
        assert int(rows.row_seq[row]) == slot


def test_a_row_sees_the_committed_text_and_its_ancestors(part: tuple[Tree, slice]) -> None:
    """The prefix is the text up to the root. The suffix is the ancestors in order, then the node itself."""
    (tree, nodes), state = part, sequences(LENGTHS)
    rows, parents = rows_of(tree, state, nodes), tree_parents(tree.children)
    assert rows.suffix_slots is not None and rows.suffix_len is not None
    for row, slot, node in each_row(tree, state, nodes):
        path = ancestors(parents, node)
        assert int(rows.prefix_len[row]) == LENGTHS[slot] + 1
        assert int(rows.suffix_len[row]) == len(path)
        suffix = rows.suffix_slots[row, : len(path)].tolist()
        assert suffix == [place(state, slot, LENGTHS[slot] + each) for each in path]


def test_every_node_has_its_own_kv_slot_after_the_root(part: tuple[Tree, slice]) -> None:
    (tree, nodes), state = part, sequences(LENGTHS)
    rows = rows_of(tree, state, nodes)
    for row, slot, node in each_row(tree, state, nodes):
        assert int(rows.kv_slots[row]) == place(state, slot, LENGTHS[slot] + node)


def test_rows_keep_the_order_of_their_tokens() -> None:
    tree, state = Tree((2, 2), CPU), sequences([3, 5])
    state.tokens[:, 3], state.tokens[:, 5] = i32([100, -1]), i32([-1, 200])
    spec_tokens = torch.arange(12, dtype=torch.int32).view(2, 6)
    rows = tree.rows(state, spec_tokens, state.length, range(7))
    assert rows.ids.tolist() == [100, *range(6), 200, *range(6, 12)]


class AnyTree(Tree):
    """Takes none of a chain's short cuts."""

    is_chain = False  # type: ignore[assignment]


def keys_of(rows: Rows, row: int) -> list[int]:
    """The KV slots that a row sees, in order."""
    table = rows.page_table[int(rows.row_seq[row])]
    prefix = [int(table[j // PAGE_SIZE]) * PAGE_SIZE + j % PAGE_SIZE for j in range(int(rows.prefix_len[row]))]
    if rows.suffix_slots is None or rows.suffix_len is None:
        return prefix
    return prefix + rows.suffix_slots[row, : int(rows.suffix_len[row])].tolist()


@pytest.mark.parametrize("nodes", [slice(0, 4), slice(0, 1), slice(2, 3)])
def test_a_chains_rows_see_the_same_keys_as_a_trees(nodes: slice) -> None:
    """A chain's keys are all prefix, a tree's are prefix and suffix. Positions and KV slots are the same."""
    state = sequences(LENGTHS)
    chain, tree = rows_of(Tree((1, 1, 1), CPU), state, nodes), rows_of(AnyTree((1, 1, 1), CPU), state, nodes)
    assert chain.suffix_slots is None and tree.suffix_slots is not None
    for name in ("ids", "positions", "kv_slots", "row_seq"):
        assert getattr(chain, name).equal(getattr(tree, name))
    for row in range(len(chain.ids)):
        assert keys_of(chain, row) == keys_of(tree, row)


# Moves ------------------------------------------------------------------------------------------------------------------------


def walk(shape: tuple[int, ...], steps: int, dice: torch.Generator) -> list[int]:
    """An accepted path: one node per level, starting with a child of the root."""
    parents, node, path = tree_parents(shape), 0, []
    for _ in range(min(steps, len(shape))):
        children = children_of(parents, node)
        node = children[int(torch.randint(0, len(children), (), generator=dice))]
        path.append(node)
    return path


def kv_of(state: SequenceState) -> Tensor:
    """A cache with a different number in every element: [2 layers, 2, pages, PAGE_SIZE, 1, 2]."""
    pages = 1 + state.page_table.numel()
    shape = (2, 2, pages, PAGE_SIZE, 1, 2)
    return torch.arange(2 * 2 * pages * PAGE_SIZE * 2, dtype=torch.float32).view(shape)


@given(shape=shapes, seed=st.integers(0, 1000), data=st.data())
def test_only_the_accepted_path_is_moved_to_the_slots_after_the_root(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    """Each sequence has its own path; one accepts nothing. The last slot is done and has no path."""
    tree, dice = Tree(shape, CPU), generator(seed)
    lengths = data.draw(st.lists(st.integers(0, 31), min_size=2, max_size=4))
    state = sequences(lengths, seed)
    paths = [walk(shape, data.draw(st.integers(0, tree.depth)), dice) for _ in lengths[:-1]]
    committed = i32([[0, *nodes] + [-1] * (tree.nodes - 1 - len(nodes)) for nodes in paths] + [[-1] * tree.nodes])
    before = kv_of(state)
    cache = SimpleNamespace(kv=before.clone())
    tree.compact(cache, state, i32(lengths), committed)  # type: ignore[arg-type]
    expected = before.clone()
    for slot, nodes in enumerate(paths):
        for step, node in enumerate(nodes, 1):
            source = place(state, slot, lengths[slot] + node)
            expected.flatten(2, 3)[:, :, place(state, slot, lengths[slot] + step)] = before.flatten(2, 3)[:, :, source]
    assert cache.kv.equal(expected)
