"""The shape of every speculation, verified in one pass (SpecInfer, Miao et al. 2024). A chain is the tree with one child per
node.

Node 0 is the last committed token. The other nodes are numbered level by level; the children of one node are adjacent, in the
order they were drawn. Node i's K/V is written i slots after node 0's, at any depth. A node sees the committed text, and then
its own ancestors as a suffix. After the verification, `compact` makes the K/V of the accepted path contiguous.

A chain's nodes are contiguous already. So a chain needs no suffix, no table of parents and no moves, and gives the same bits.
Only this file knows of this shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.state import SequenceState
from ssd.kv.cache import KVCache, Rows


class Tree:
    """The shape of a speculation.

    children: number of children per node, level by level. (3, 2, 1) has 1 + 3 + 6 + 6 nodes, (1,) * K is a chain of K tokens,
    and () is the last committed token alone. depth: number of levels without the root's. nodes: T, the number of nodes with the
    root. levels: the nodes of each depth, starting with the root's.
    """

    def __init__(self, children: Sequence[int], device: torch.device) -> None:
        self.children = tuple(children)
        self.depth = len(self.children)
        widths = [1]
        for count in self.children:
            widths.append(widths[-1] * count)
        starts = [sum(widths[:d]) for d in range(self.depth + 2)]
        self.levels = [slice(a, b) for a, b in pairwise(starts)]
        self.nodes = starts[-1]
        parent = [-1]
        for d, count in enumerate(self.children):
            for node in range(starts[d], starts[d + 1]):
                parent += [node] * count

        def table(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.parent = table(parent)  # [T]
        self._nodes_within = table([b - 1 for b in starts[1:]])  # [depth + 1] nodes down to each depth, without the root

    @property
    def is_chain(self) -> bool:
        return all(count == 1 for count in self.children)

    @property
    def needs_compaction(self) -> bool:
        """Whether the K/V of an accepted path may have gaps, so that `compact` has to move them."""
        return not self.is_chain

    def parent_table(self, n: int) -> Tensor | None:
        """The argument `parent` of `ops.verify` for n slots, [n, T] int32; None for a chain."""
        return None if self.is_chain else self.parent.expand(n, -1)

    @property
    def nodes_within(self) -> Tensor | None:
        """The argument of `ops.cache_lookup`, [depth + 1] int32: only whole levels may be proposed; None for a chain."""
        return None if self.is_chain else self._nodes_within

    def rows(self, state: SequenceState, spec_tokens: Tensor, length: Tensor, nodes: range) -> Rows:
        """Rows of a range of the nodes, for every sequence. Node −1 is the token before the root.

        spec_tokens: [n, T − 1] int32; length: [n] int32, tokens stored before the root.
        """
        if self.is_chain:
            return state.rows(spec_tokens, length, nodes.start, len(nodes))
        return state.rows(spec_tokens, length, nodes.start, len(nodes), self.parent, self.depth)

    def compact(self, cache: KVCache, state: SequenceState, length: Tensor, path: Tensor) -> None:
        """Move the K/V of the accepted nodes to directly after the root, so that the sequence is contiguous again.

        length: [n] int32, before the commit; path: [n, T] int32 from `ops.verify`.
        """
        if not self.is_chain:
            ops.move_kv(cache.kv, state.page_table, length, path)
