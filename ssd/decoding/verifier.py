"""The target's side of a round: run the target over the speculation, decide, commit."""

from __future__ import annotations

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
        self._output = self._new_output(len(tables.state.done), tree.nodes)

    def stage(self, request: Admitted) -> None:
        """Write a request into the staging tables, so that its prompt can be stored. Called `alone`."""
        stage(self.tables.staging, self._executor, request)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt, which will get this slot."""
        self._executor.once("target", "prefill", lambda: self._forward_chunk(start, stop), slot=slot)

    def grow(self, slot: int, first: int, pages: Tensor) -> None:
        """Name further pages of a slot, from its `first` one on. pages: [count] int32, on the host."""
        self._executor.write("target", self.tables.state.page_table[slot, first : first + len(pages)], pages)

    def enter(self, slot: int, start: int, stop: int, resumes: bool) -> Verification:
        """Store the last chunk, commit the first token (by an empty verification), and switch the slot on. Called `alone`.

        resumes: whether the sequence has a token after the chunk already. Then nothing is committed.
        """

        def prefill() -> VerifyOutput:
            staging, output = self.tables.staging, self._new_output(1, 1)
            hidden = self._forward_chunk(start, stop)
            if resumes:
                output.report_committed(staging.tokens[:, : stop + 1])
            else:
                self.model.logits(hidden[-1:], out=output.logits[0])
                self._decide(staging, self._empty_speculation, output)
            # There is no guess of the first token: the first look-up is a miss.
            staging.outcome.fill_(-1)
            Reports.unpack(output.report).accepted.fill_(-1)
            self.tables.state.only(slot).copy_from(staging)
            return output

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
        output = self._output.first(n)
        rows = tree.rows(state, speculation.tokens, state.length, range(tree.nodes))
        self.model.next_logits(rows, self.kv_cache, out=output.logits.view(-1, self.model.vocab_size))
        self._decide(state, speculation, output, tree.parent_table(n))
        length_before = rows.positions[:: tree.nodes]  # the roots' positions: state.length is after the commit already
        tree.compact(self.kv_cache, state, length_before, output.path)
        return output

    def _new_output(self, slots: int, nodes: int) -> VerifyOutput:
        return VerifyOutput.allocate(slots, nodes, self.tree.nodes, self.model.vocab_size, self.tables.state.done.device)

    def _decide(
        self, state: SequenceState, speculation: Speculation, output: VerifyOutput, parent: Tensor | None = None
    ) -> None:
        """Commit the outcome of a speculation by p's logits in `output`, and write the rest of `output`.

        parent: [n, T] int32, None for a chain.
        """
        logits = output.logits
        ops.verify(
            p_logits=logits,
            p_stats=state.row_stats(logits.view(-1, logits.shape[-1])).view(*logits.shape[:2], -1),
            q_logits=speculation.q_logits,
            q_stats=speculation.q_stats,
            q_address=speculation.q_address,
            draft_id_of=self._draft_id_of,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            hit=speculation.hit,
            bad=speculation.bad,
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
            path=output.path,
            report=output.report,
        )
