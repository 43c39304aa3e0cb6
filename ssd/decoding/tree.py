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
        parent, depths = [-1], [0]
        for d, count in enumerate(self.children):
            for node in range(starts[d], starts[d + 1]):
                parent += [node] * count
                depths += [d + 1] * count
        path = [[i] * self.depth for i in range(self.nodes)]  # entries after a node's depth are never read
        for node in range(1, self.nodes):
            path[node][: depths[node]] = [*path[parent[node]][: depths[node] - 1], node]

        def table(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.parent = table(parent)  # [T]
        self._depth_of = table(depths)  # [T]
        self._path = table(path)  # [T, depth] the ancestors without the root, then the node
        self.nodes_within = table([b - 1 for b in starts[1:]])  # [depth + 1] nodes down to each depth, without the root

    @property
    def is_chain(self) -> bool:
        return all(count == 1 for count in self.children)

    @property
    def needs_compaction(self) -> bool:
        """Whether the K/V of an accepted path may have gaps, so that `compact` has to move them."""
        return not self.is_chain

    def parent_table(self, n: int) -> Tensor | None:
        """The argument `parent` of `ops.verify` for n slots, [n, T] int32; None for a chain."""
        return None if self.is_chain else self.parent.repeat(n, 1)

    def cut(self, length: Tensor) -> None:
        """Replace each sequence's room in tokens, [n] int32, by the number of nodes that may be proposed: whole levels only."""
        if not self.is_chain:
            length.copy_(self.nodes_within[length.clamp_max(self.depth).long()])

    def rows(self, state: SequenceState, length: Tensor, ids: Tensor, nodes: slice) -> Rows:
        """Rows of a range of the nodes, for every sequence.

        ids: [n, nodes] int32; length: [n] int32, tokens stored before the root.
        """
        if self.is_chain:
            return state.rows(ids, length, nodes.start)
        n, count = ids.shape
        depth = self._depth_of[nodes].repeat(n)  # [n·nodes]
        node = torch.arange(nodes.start, nodes.stop, dtype=torch.int32, device=ids.device)
        kv_slots = state.kv_slots(length[:, None] + node)  # [n, nodes]
        path = self._path[nodes].flatten()
        suffix = state.kv_slots(length[:, None] + path)  # [n, nodes·depth]
        return Rows(
            ids=ids.flatten().contiguous(),
            positions=length.repeat_interleave(count) + depth,
            kv_slots=kv_slots.flatten(),
            row_seq=torch.arange(n, dtype=torch.int32, device=ids.device).repeat_interleave(count),
            prefix_len=(length + 1).repeat_interleave(count),
            page_table=state.page_table,
            suffix_slots=suffix.view(n * count, self.depth),
            suffix_len=depth,
        )

    def next_position(self, length: Tensor, node: Tensor) -> Tensor:
        """The position after each node. For a chain it is also the number of keys that the token there sees before its own.

        length: [n] int32, tokens stored before the root; node: [n, any] int32. Returns [n, any] int32.
        """
        assert self.is_chain  # a branch of a tree would see its node's ancestors as a suffix, before its own tokens
        return length[:, None] + 1 + node

    def compact(self, cache: KVCache, state: SequenceState, length: Tensor, path: Tensor) -> None:
        """Move the K/V of the accepted nodes to directly after the root, so that the sequence is contiguous again.

        length: [n] int32, before the commit; path: [n, T] int32 from `ops.verify`.
        """
        if self.is_chain:
            return
        steps = torch.arange(1, self.depth + 1, dtype=torch.int32, device=path.device)
        node = path[:, 1 : self.depth + 1]
        src = state.kv_slots(length[:, None] + node.clamp_min(0))
        dst = state.kv_slots(length[:, None] + steps)
        ops.move_kv(cache.kv, torch.where(node >= 0, src, -1).flatten(), dst.flatten())
