"""Speculation by a draft model: a chain or a tree, drafted level by level after the last committed token.

Plain speculative decoding only uses `draft`. SSD's cache (ssd/decoding/cache.py) runs the same model over the trunk (`extend`)
and the branches (`step`), and drafts for misses on the spot (`propose`). A hit and a drafted miss hand out the same tokens for
the same prefix, so sampled SSD equals sampled SD token for token: both draft with the same noise, and a branch's keys give the
same bits from scratch pages as from the trunk.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.prefill import Admitted, chunk_rows
from ssd.decoding.state import DraftTables, QRows
from ssd.decoding.tree import Tree
from ssd.kv.cache import KVCache, Rows
from ssd.models.pair import Draft
from ssd.runtime.executor import Executor


class ModelDrafter:
    """A `Drafter` with a draft model, for the sequences of `tables`.

    kv_cache: the draft's K/V cache, with scratch pages for branches. tree: the shape of a speculation drafted on the spot.
    saguaro_f, saguaro_c: the parameters of Saguaro sampling (arXiv 2603.03251, Definition 14).
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
        self._stores = True  # whether the staged prompt is stored

    @property
    def needs_compaction(self) -> bool:
        return self.tree.needs_compaction

    def stage(self, request: Admitted) -> None:
        self._stores = self.tables.context is None or len(request.prompt) < self.tables.context
        if request.params.temperature > 0:
            self.tables.speculation.hold_distributions(self.tables.branches.budget, self.model.vocab_size)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt in the trunk, unless the prompt leaves nothing to propose."""
        if not self._stores:
            return

        def prefill() -> None:
            self.model.forward(chunk_rows(self.tables.staging, start, stop), self.kv_cache)

        self._executor.once("draft", "prefill", prefill, slot=slot)

    def draft(self, n: int) -> None:
        tables = self.tables.first(n)
        tables.latch_and_look_up()

        def propose() -> None:
            tables.speculation.tokens.copy_(self.propose(tables, extended=False))

        if tables.context is None:
            propose()
        else:
            self._executor.when(tables.speculation.length > 0, propose)

    def compact(self, n: int, path: Tensor) -> None:
        self.tree.compact(self.kv_cache, self.tables.state.first(n), self.tables.branches.length[:n], path)

    def propose(self, tables: DraftTables, extended: bool) -> Tensor:
        """Draft a tree after the last committed token of every slot, one forward pass per level.

        extended: whether `extend` stores the trunk in each round. Otherwise the token before the last one may not be stored
        yet: it is not if it was the last proposed token and was accepted. So this pass runs it too, perhaps for the second
        time. Returns the nodes' tokens, [n, T − 1] int32, and sets the speculation's length to the number of nodes that fit,
        and at most to those before a bad row.
        """
        state, speculation, branches, tree = tables.state, tables.speculation, tables.branches, self.tree
        tree.cut(speculation.length)
        last = branches.last_token[:, None]
        if extended:
            rows, every = state.rows(last, branches.length), 1
        else:
            start = (branches.length - 1).clamp_min(0)
            before_last = state.tokens.gather(1, start[:, None].long())
            rows, every = state.rows(torch.cat([before_last, last], dim=1), start), 2
        drafted: list[Tensor] = []
        for depth, children in enumerate(tree.children):
            nodes = tree.levels[depth]
            if depth > 0:
                rows, every = tree.rows(state, branches.length, drafted[-1], nodes), 1
            at = QRows(branches.budget, nodes)
            drawn = self.step(tables, rows, speculation.parity, at, children, every, drafted=tree.levels[depth].stop - 1)
            drafted.append(drawn.view(len(state.done), -1))
        return torch.cat(drafted, dim=1)

    def extend(self, tables: DraftTables) -> Tensor:
        """Store the last committed token and the speculation in the trunk.

        Returns the logits after each node, [n, T, Vd] float32.
        """
        ids = torch.cat([tables.branches.last_token[:, None], tables.speculation.tokens], dim=1)  # [n, T]
        rows = self.tree.rows(tables.state, tables.branches.length, ids, slice(0, self.tree.nodes))
        return self._next_logits(rows).view(*ids.shape, -1)

    def step(
        self,
        tables: DraftTables,
        rows: Rows,
        half: Tensor,
        q_rows: QRows,
        m: int = 1,
        every: int = 1,
        drafted: int | None = None,
    ) -> Tensor:
        """Run one forward pass and draw m tokens after the last row of each group of `every` rows.

        half, q_rows: the location in q for the distributions, see `Speculation`. drafted: the number of the speculation's nodes
        drafted before, where a bad row ends it; None for a branch, which the look-up cuts. Returns [R / every, m] int32 target
        ids.
        """
        logits = self._next_logits(rows, every)
        return self.draw(tables, logits, rows.positions[every - 1 :: every] + 1, half, q_rows, m, drafted)

    def _next_logits(self, rows: Rows, every: int = 1) -> Tensor:
        """A forward pass. Rows beyond the draft's context are at its last position, and nobody uses their logits."""
        if self.tables.context is not None:
            rows = replace(rows, positions=rows.positions.clamp_max(self.tables.context - 1))
        return self.model.next_logits(rows, self.kv_cache, every)

    def draw(
        self,
        tables: DraftTables,
        logits: Tensor,
        position: Tensor,
        half: Tensor,
        q_rows: QRows,
        m: int = 1,
        drafted: int | None = None,
    ) -> Tensor:
        """Draw m tokens per row and keep the distributions. logits: [R, Vd] float32; position: [R] int32, of the drawn tokens.

        Returns [R, m] int32 target ids, −1 where fewer than m tokens have a probability, as in a bad row.
        """
        state, speculation = tables.state, tables.speculation
        per_slot = logits.view(len(state.done), -1, logits.shape[-1])  # [n, branches or nodes, Vd]
        stats = state.row_stats(per_slot, *self._saguaro)
        speculation.keep_distributions(half, q_rows, per_slot, stats)
        seed = state.seed.repeat_interleave(per_slot.shape[1])
        ends = () if drafted is None else (speculation.length, speculation.bad, drafted)
        return ops.sample(logits, stats.view(-1, ops.STATS), seed, position, m, self.id_of, *ends)

    def columns_of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The draft's columns of target ids, 0 where the draft lacks the token, and whether the draft has it.

        tokens: int64, any shape.
        """
        columns = tokens if self._draft_id_of is None else self._draft_id_of[tokens].long()
        known = (columns >= 0) & (columns < self.model.vocab_size)
        return torch.where(known, columns, 0), known
