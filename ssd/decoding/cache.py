"""The speculation cache (arXiv 2603.03251, section 3): branches for the likely outcomes of the verification in flight.

look_up     find the outcome of the last verification among the branches prepared for it; a miss gets the fallback
branch      while the target verifies: extend the trunk by the speculation, fork into the likely outcomes, draft after each
learn       on the host, after the round: improve the fan-out and the choice of the fallback by the outcomes

An outcome is (node, token): the last accepted node, and the token after it. In a chain, the node is the accepted count.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ssd import ops
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.drafters.ngram import propose_ngram
from ssd.decoding.fallback import FallbackPolicy
from ssd.decoding.fanout import Measured
from ssd.decoding.round import Round, SlotReport
from ssd.decoding.state import DraftTables, QRows
from ssd.runtime.executor import Executor


class SpeculationCache:
    """The branches that `drafter` prepares, for the sequences of its tables.

    fan_out_table: [2, K+1, K+1] int32, the number of guesses for each node, see `ops.fork`. measured: improves the table by the
    outcomes; with None the table stays as it is. fallback: chooses the fallback of a round.
    """

    REFRESH = 16  # outcomes between two tables of a measured fan-out

    def __init__(
        self,
        drafter: ModelDrafter,
        executor: Executor,
        fan_out_table: Tensor,
        measured: Measured | None,
        fallback: FallbackPolicy,
    ) -> None:
        self.drafter = drafter
        self.fan_out_table = fan_out_table
        self.measured = measured
        self.fallback = fallback
        self._executor = executor
        drafter.tables.branches.hold_z(drafter.model.vocab_size)

    @property
    def tables(self) -> DraftTables:
        return self.drafter.tables

    def look_up(self, n: int, neural: bool) -> None:
        """The program that hands out the next speculation of the first n slots.

        neural: whether the draft model drafts for misses; otherwise they get n-grams.
        """
        tables = self.tables.first(n)
        self._note_outcomes(tables)
        tables.latch_and_look_up()

        def fall_back() -> None:
            with self._executor.trace.span("draft", "fallback" if neural else "n-gram", batch=n):
                if neural:
                    self.drafter.propose(tables, extended=True)
                else:
                    propose_ngram(tables)

        self._executor.when(tables.branches.missed, fall_back)

    def branch(self, n: int) -> None:
        """The program that prepares the branches of the round in flight: K + 1 forward passes, hidden by the target's pass."""
        tables = self.tables.first(n)
        if tables.context is None:
            self._branch(tables)
        else:
            self._executor.when(tables.branches.length, lambda: self._branch(tables))

    def _branch(self, tables: DraftTables) -> None:
        branches, tree = tables.branches, self.drafter.tree
        assert tree.is_chain  # a branch of a tree would see its node's ancestors as a suffix, before its own tokens
        with self._executor.trace.span("draft", "extend"):
            z = self.drafter.extend(tables)  # [n, K + 1, Vd]
        with self._executor.trace.span("draft", "fork"):
            self._fork(tables, z)
        for d in range(tree.depth):
            with self._executor.trace.span("draft", f"branch {d}"):
                q_rows = QRows(slice(branches.budget), d)
                rows = branches.rows(tables.state.page_table, d)
                self.drafter.step(tables, rows, branches.branch_tokens[:, :, d], q_rows, next_half=True)

    def learn(self, round: Round, reports: Mapping[int, SlotReport]) -> None:
        """Learn from the outcomes that a round's look-up saw, and write a better fan-out table for later rounds.

        reports: one for each slot whose request had not ended before the round; its outcomes count as the target decided them.
        So the round that ends a request teaches nothing, whether the host cuts it at a stop string or the device at its last
        token: the place of the cut says nothing about the draft, and rounds in flight behind it decode a text that nobody
        reads. Blocks until the round's branches are drafted.
        """
        assert round.drafting is not None and round.looked_up is not None and round.seen is not None
        round.drafting.wait()
        hits = sum(report.hit for report in reports.values())
        misses = len(reports) - hits
        round.looked_up.span.details.update(hits=hits, misses=misses, seen=round.seen.tolist())
        round.verified.span.details.update(hits=hits, misses=misses)
        drafted = round.neural and any(report.missed for report in reports.values())
        fallback = round.looked_up.span if drafted else None
        self.fallback.observe_times(round.verified.span, round.drafting.span, fallback)
        for slot in reports:
            if (outcome := round.outcomes[slot]) is None:
                continue
            self.fallback.observe_outcome(hit=outcome.after_hit, neural=round.neural_before, tokens=outcome.k + 1)
            if self.measured is not None:
                self.measured.observe(outcome.after_hit, outcome.spec_len, outcome.k, outcome.rank)
                if self.measured.observations % self.REFRESH == 0:
                    self._executor.write("draft", self.fan_out_table, self.measured.tables())

    def _fork(self, tables: DraftTables, z: Tensor) -> None:
        """Choose the guesses: the likeliest tokens after each node. z: [n, K + 1, Vd] float32, the draft's logits after it."""
        speculation, branches = tables.speculation, tables.branches
        ops.fork(
            logits=z,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            table=self.fan_out_table,
            hit=speculation.hit,
            guess=branches.guess,
            guess_k=branches.guess_node,
            id_of=self.drafter.id_of,
        )

    def _note_outcomes(self, tables: DraftTables) -> None:
        """Write to `Branches.seen` the rank of each outcome's token among the draft's guesses after the outcome's node."""
        state, speculation, branches = tables.state, tables.speculation, tables.branches
        assert branches.z is not None
        ops.rank_outcomes(
            logits=branches.z,
            outcome=state.outcome,
            parity=speculation.parity,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            hit=speculation.hit,
            done=state.done,
            length=state.length,
            draft_id_of=self.drafter.draft_id_of,
            budget=branches.budget,
            draft_context=tables.draft_context,
            seen=branches.seen,
        )
