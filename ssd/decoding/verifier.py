"""The target's side of a round: run the target over the speculation, decide, commit."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.prefill import Admitted, chunk_rows, stage
from ssd.decoding.round import Reports, Verification, VerifyOutput
from ssd.decoding.state import SequenceState, Speculation, Tables
from ssd.decoding.tree import Tree
from ssd.kv.cache import KVCache
from ssd.models.model import Model
from ssd.runtime.executor import Executor


class Verifier:
    """Verifies the speculation of `tables` with the target model, and commits the outcome to their state.

    tree: the shape of the speculation. draft_id_of: [V] int32, target id → draft column, for a draft whose vocabulary is not
    the target's.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        tables: Tables,
        tree: Tree,
        executor: Executor,
        draft_id_of: Tensor | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.tables = tables
        self.tree = tree
        self._executor = executor
        self._draft_id_of = draft_id_of
        self._empty_speculation = Speculation.allocate(1, 0, tables.state.done.device)

    def stage(self, request: Admitted) -> None:
        """Write a request into the staging tables, so that its prompt can be stored. Called `alone`."""
        stage(self.tables.staging, self._executor, request)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt, which will get this slot."""
        self._executor.once("target", "prefill", lambda: self._forward_chunk(start, stop), slot=slot)

    def enter(self, slot: int, start: int, stop: int) -> Verification:
        """Store the last chunk, commit the first token (by an empty verification), and switch the slot on. Called `alone`."""

        def prefill() -> VerifyOutput:
            staging = self.tables.staging
            logits, path = self._decide(
                staging, self._empty_speculation, self.model.logits(self._forward_chunk(start, stop)[-1:])
            )
            staging.outcome.fill_(-1)  # there is no guess of the first token: the first look-up is a miss
            self.tables.state.only(slot).copy_from(staging)
            return VerifyOutput(logits, path, self._report(staging, self._empty_speculation))

        return Verification.of(self._executor.once("target", "prefill", prefill, slot=slot), self._executor)

    def _forward_chunk(self, start: int, stop: int) -> Tensor:
        return self.model.forward(chunk_rows(self.tables.staging, start, stop), self.kv_cache)

    def retire(self, slot: int) -> None:
        """Switch a slot off."""
        with self._executor.alone(), self._executor.on("target"):
            self.tables.state.retire(slot)

    def verify(self, n: int) -> VerifyOutput:
        """The program of a round of the first n slots: verify every slot's speculation in one forward pass."""
        tree, state, speculation = self.tree, self.tables.state.first(n), self.tables.speculation.first(n)
        ids = torch.cat([state.last_token[:, None], speculation.tokens], dim=1)  # [n, T]
        rows = tree.rows(state, state.length, ids, slice(0, tree.nodes))
        logits = self.model.next_logits(rows, self.kv_cache)
        p_logits, path = self._decide(state, speculation, logits, tree.parent_table(n))
        length_before = rows.positions[:: tree.nodes]  # the roots' positions: state.length is after the commit already
        tree.compact(self.kv_cache, state, length_before, path)
        return VerifyOutput(p_logits, path, self._report(state, speculation))

    def _decide(
        self, state: SequenceState, speculation: Speculation, logits: Tensor, parent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Commit the outcome of a speculation. logits: [n·T, V] float32, p's. parent: [n, T] int32, None for a chain.

        Returns the logits [n, T, V] and the path [n, T] int32.
        """
        p_logits = logits.view(len(state.done), -1, self.model.vocab_size)
        path = ops.verify(
            p_logits=p_logits,
            p_stats=state.row_stats(p_logits),
            q_logits=speculation.q_logits,
            q_stats=speculation.q_stats,
            q_address=speculation.q_address,
            draft_id_of=self._draft_id_of,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            parent=parent,
            parity=speculation.parity,
            seed=state.seed,
            eos=state.eos,
            ignore_eos=state.ignore_eos,
            max_length=state.max_length,
            tokens=state.tokens,
            length=state.length,
            last_token=state.last_token,
            done=state.done,
            outcome=state.outcome,
        )
        return p_logits, path

    def _report(self, state: SequenceState, speculation: Speculation) -> Tensor:
        """The packed report, [n, width] int32; see `Reports`."""
        offset = torch.arange(1 - self.tree.nodes, 1, dtype=torch.int64, device=state.length.device)
        return Reports(
            length=state.length,
            done=state.done,
            accepted=state.outcome.index_select(1, speculation.parity.long())[:, 0, 0],
            proposed=speculation.length,
            hit=speculation.hit,
            bad=speculation.bad,
            newest=state.tokens.gather(1, (state.length[:, None] + offset).clamp_min(0)),
        ).pack()
