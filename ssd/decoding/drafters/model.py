"""Speculation by a draft model: a chain or a tree, drafted level by level after the last committed token.

In plain speculative decoding that is all there is (`draft`). SSD's cache (ssd/decoding/cache.py) runs the same model over its trunk
and its branches (`extend`, `step`), and drafts what it missed on the spot (`propose`). A hit and a drafted miss hand out the same
tokens for the same prefix, which makes sampled SSD equal sampled SD token for token: both draft with the same noise, and a
branch's keys give the same bits from scratch pages as from the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.prefill import chunk_rows
from ssd.decoding.state import DraftTables, QRows
from ssd.decoding.tree import Tree
from ssd.kv.cache import KVCache, Rows
from ssd.models.pair import Draft
from ssd.runtime.executor import Executor


class ModelDrafter:
    """A `Drafter` with a model, for the sequences of `tables`.

    kv_cache: the draft's own, with scratch pages for branches. tree: the shape of what is drafted on the spot. saguaro_f, saguaro_c:
    how the draft draws (arXiv 2603.03251, Definition 14).
    """

    def __init__(
        self,
        draft: Draft,
        kv_cache: KVCache,
        tables: DraftTables,
        tree: Tree,
        executor: Executor,
        saguaro_f: int,
        saguaro_c: float,
    ) -> None:
        self.model = draft.model
        self.kv_cache = kv_cache
        self.tables = tables
        self.tree = tree
        self.id_of = draft.id_of
        self._draft_id_of = draft.draft_id_of
        self._executor = executor
        self._saguaro = (saguaro_f, saguaro_c)

    @property
    def keeps(self) -> bool:
        return self.tree.needs_compaction

    def stage(self, samples: bool) -> None:
        if samples:
            self.tables.speculation.hold_distributions(self.tables.branches.budget, self.model.vocab_size)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt in the trunk."""

        def prefill() -> None:
            self.model.forward(chunk_rows(self.tables.staging, start, stop), self.kv_cache)

        self._executor.once("draft", "prefill", prefill, slot=slot)

    def draft(self, n: int) -> None:
        tables = self.tables.first(n)
        tables.latch()
        tables.speculation.tokens.copy_(self.propose(tables, extended=False))

    def keep(self, n: int, path: Tensor) -> None:
        self.tree.compact(self.kv_cache, self.tables.state.first(n), self.tables.branches.length[:n], path)

    def propose(self, tables: DraftTables, extended: bool) -> Tensor:
        """Draft a tree after the last committed token of every slot, a forward pass a level.

        extended: whether `extend` stores the trunk round by round. Without it the token before the last one is not stored where it was
        the last one proposed, and accepted: it is run here, perhaps again. Returns the nodes' tokens, [n, T − 1] int32; the
        speculation's length becomes the nodes there is room for.
        """
        state, speculation, branches, tree = tables.state, tables.speculation, tables.branches, self.tree
        tree.cut(speculation.length)
        last = branches.last_token[:, None]
        if extended:
            rows, every = state.rows(last, branches.length), 1
        else:
            first = (branches.length - 1).clamp_min(0)
            before = state.tokens.gather(1, first[:, None].long())
            rows, every = state.rows(torch.cat([before, last], dim=1), first), 2
        drafted: list[Tensor] = []
        for depth, children in enumerate(tree.children):
            nodes = tree.levels[depth]
            if depth > 0:
                rows, every = tree.rows(state, branches.length, drafted[-1], nodes), 1
            drawn = self.step(tables, rows, speculation.parity, QRows(branches.budget, nodes), children, every)
            drafted.append(drawn.view(len(state.done), -1))
        return torch.cat(drafted, dim=1)

    def extend(self, tables: DraftTables) -> Tensor:
        """Store the speculation in the trunk, after the last committed token. Returns the logits after each node, [n, T, Vd] float32."""
        ids = torch.cat([tables.branches.last_token[:, None], tables.speculation.tokens], dim=1)  # [n, T]
        rows = self.tree.rows(tables.state, tables.branches.length, ids, slice(0, self.tree.nodes))
        return self.model.next_logits(rows, self.kv_cache).view(*ids.shape, -1)

    def step(self, tables: DraftTables, rows: Rows, half: Tensor, at: QRows, m: int = 1, every: int = 1) -> Tensor:
        """One forward pass, and m tokens drawn after each row, or after the last row of each run of `every`. half, at: where the
        distributions are kept, see `Speculation`. Returns [R / every, m] int32 target ids."""
        logits = self.model.next_logits(rows, self.kv_cache, every)
        return self.draw(tables, logits, rows.positions[every - 1 :: every] + 1, half, at, m)

    def draw(self, tables: DraftTables, logits: Tensor, position: Tensor, half: Tensor, at: QRows, m: int = 1) -> Tensor:
        """Draw m tokens a row and keep the distributions. logits: [R, Vd] float32; position: [R] int32, of the tokens drawn. Returns [R, m]
        int32 target ids, −1 where the draft has fewer tokens to draw."""
        state = tables.state
        per_slot = logits.view(len(state.done), -1, logits.shape[-1])  # [n, branches or nodes, Vd]
        stats = state.row_stats(per_slot, *self._saguaro)
        tables.speculation.keep_distributions(half, at, per_slot, stats)
        seed = state.seed.repeat_interleave(per_slot.shape[1])
        return ops.sample(logits, stats.view(-1, ops.STATS), seed, position, m, self.id_of)

    def columns_of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The draft's columns of target ids (any shape, int64), 0 where there is none, and which of them there are."""
        columns = tokens if self._draft_id_of is None else self._draft_id_of[tokens].long()
        known = (columns >= 0) & (columns < self.model.vocab_size)
        return torch.where(known, columns, 0), known
