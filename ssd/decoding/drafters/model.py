"""Speculation by a draft model: a chain or a tree, drafted level by level after the last committed token.

Plain speculative decoding only uses `draft`. SSD's cache (ssd/decoding/cache.py) runs the same model over the trunk (`extend`)
and the branches (`step`), and drafts for misses on the spot (`propose`). A hit and a drafted miss hand out the same tokens for
the same prefix, so sampled SSD equals sampled SD token for token: both draft with the same noise, and a branch's keys give the
same bits from scratch pages as from the trunk.
"""

from __future__ import annotations

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
        self.draft_id_of = draft.draft_id_of
        self._executor = executor
        self._saguaro = (saguaro_f, saguaro_c)
        self._stores = True  # whether the staged prompt is stored

    @property
    def needs_compaction(self) -> bool:
        return self.tree.needs_compaction

    def stage(self, request: Admitted) -> None:
        self._stores = self.reach(len(request.tokens)) > 0
        if request.params.temperature > 0:
            self.tables.speculation.hold_distributions(self.tables.branches.budget, self.model.vocab_size)

    def reach(self, tokens: int) -> int:
        context = self.tables.draft_context
        return context - 1 if tokens < context else 0

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt in the trunk, unless the prompt leaves nothing to propose."""
        if not self._stores:
            return

        def prefill() -> None:
            self.model.forward(chunk_rows(self.tables.staging, start, stop), self.kv_cache)

        self._executor.once("draft", "prefill", prefill, slot=slot)

    def draft(self, n: int) -> None:
        tables = self.tables.first(n)
        tables.latch_and_look_up(self.tree.nodes_within)
        if tables.context is None:
            self.propose(tables, extended=False)
        else:
            self._executor.when(tables.branches.missed, lambda: self.propose(tables, extended=False))

    def compact(self, n: int, path: Tensor) -> None:
        self.tree.compact(self.kv_cache, self.tables.state.first(n), self.tables.branches.length[:n], path)

    def propose(self, tables: DraftTables, extended: bool) -> None:
        """Draft a tree after the last committed token of every slot, one forward pass per level; the missed slots get it.

        extended: whether `extend` stores the trunk in each round. Otherwise the token before the last one may not be stored
        yet: it is not if it was the last proposed token and was accepted. So the first pass runs it too, perhaps for the second
        time. A bad row ends the speculation.
        """
        speculation, branches, tree = tables.speculation, tables.branches, self.tree
        for depth, children in enumerate(tree.children):
            nodes, drawn = tree.levels[depth], tree.levels[depth + 1]
            every = 2 if depth == 0 and not extended else 1
            rows = tree.rows(tables.state, speculation.tokens, branches.length, range(nodes.start + 1 - every, nodes.stop))
            tokens = speculation.tokens[:, drawn.start - 1 : drawn.stop - 1]
            drafted = nodes.stop - 1
            self.step(tables, rows, tokens, QRows(branches.budget, nodes), children, every, branches.missed, drafted)

    def extend(self, tables: DraftTables) -> Tensor:
        """Store the last committed token and the speculation in the trunk.

        Returns the logits after each node, [n, T, Vd] float32: the branches' z.
        """
        z, length = tables.branches.z, tables.branches.length
        assert z is not None
        rows = self.tree.rows(tables.state, tables.speculation.tokens, length, range(self.tree.nodes))
        self.model.next_logits(rows, self.kv_cache, out=z.view(-1, z.shape[-1]))
        return z

    def step(
        self,
        tables: DraftTables,
        rows: Rows,
        tokens: Tensor,
        q_rows: QRows,
        m: int = 1,
        every: int = 1,
        missed: Tensor | None = None,
        drafted: int | None = None,
        next_half: bool = False,
    ) -> None:
        """Run one forward pass, draw m tokens after the last row of each group of `every` rows, and keep the distributions.

        tokens: [n, R / n / every · m] int32, gets the target ids, −1 where fewer than m tokens have a probability, as in a bad
        row. q_rows, next_half: the location in q for the distributions, see `Speculation`. missed: [n] uint8, the slots that
        get tokens. drafted: the number of the speculation's nodes drafted before, where a bad row ends it; None for a branch,
        which the look-up cuts.
        """
        state, speculation = tables.state, tables.speculation
        logits = self.model.next_logits(rows, self.kv_cache, every)
        stats = state.row_stats(logits, *self._saguaro)
        q_logits, q_stats = speculation.q_at(q_rows)
        ops.sample(
            logits=logits,
            stats=stats,
            seed=state.seed,
            position=rows.positions[every - 1 :: every],
            tokens=tokens,
            m=m,
            id_of=self.id_of,
            missed=missed,
            parity=speculation.parity,
            next_half=next_half,
            q_logits=q_logits,
            q_stats=q_stats,
            spec_len=None if drafted is None else speculation.length,
            bad=None if drafted is None else speculation.bad,
            drafted=drafted or 0,
        )
