"""The draft's side of a round (arXiv 2603.03251, section 3).

look_up     the outcome of the last verification among the branches prepared for it; a miss gets the fallback
branch      while the target verifies: extend the trunk by the speculation, fork into the likely outcomes, draft behind each
learn       behind the round, on the host: what was seen of outcomes, for the fan-out and the fallback to come

Plain speculative decoding is the same with an empty cache: every look-up is a miss, drafted on the spot, as a chain or as a tree.
That a hit and a drafted miss hand out the same tokens for the same prefix is what makes sampled SSD equal sampled SD token for
token: both draft with the same noise, and a branch's keys give the same bits from scratch pages as from the trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.fallback import Fallback, propose_ngram
from ssd.decoding.fanout import Measured
from ssd.decoding.link import Exchange
from ssd.decoding.prefill import chunk_rows
from ssd.decoding.round import Round, SlotReport
from ssd.decoding.state import DraftState, SequenceState, Speculation
from ssd.decoding.tree import Tree
from ssd.kv.cache import KVCache, Rows
from ssd.models.pair import Draft
from ssd.runtime.executor import Executor


@dataclass
class Drafting:
    """How a Speculator drafts. fan_out: [2, K+1, K+1] int32 tables, see `ops.fork`; None keeps the cache empty. measured: what changes
    them between rounds. saguaro_f, saguaro_c: Definition 14. tree: the shape of what is drafted on the spot; None: a chain."""

    fan_out: Tensor | None = None
    measured: Measured | None = None
    fallback: Fallback = field(default_factory=lambda: Fallback("neural"))
    saguaro_f: int = 0
    saguaro_c: float = 1.0
    tree: Tree | None = None


class Speculator:
    """Drafts with `model` for the sequences of `exchange`, and hands out the speculation, in the draft's tables there."""

    REFRESH = 16  # outcomes seen between two tables of a measured fan-out

    def __init__(
        self,
        model: Draft,
        cache: KVCache,
        exchange: Exchange,
        draft: DraftState,
        executor: Executor,
        drafting: Drafting,
    ) -> None:
        self.model = model.model
        self.cache = cache
        self.exchange = exchange
        self.state = exchange.draft.state
        self.staging = exchange.draft.staging
        self.speculation = exchange.draft.speculation
        self.draft = draft
        self.lookahead = self.speculation.lookahead
        self.budget = draft.guess.shape[1]
        self.drafting = drafting
        self._executor = executor
        self._id_of = model.id_of
        self._draft_id_of = model.draft_id_of
        if drafting.fan_out is not None:
            draft.hold_z(self.model.vocab_size)

    def stage(self, samples: bool) -> None:
        """A prompt is staged. samples: whether its request does. Called `alone`."""
        if samples:
            self.exchange.hold_distributions(self.budget, self.model.vocab_size)
        self.exchange.stage()

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt in the trunk."""

        def prefill() -> None:
            rows = chunk_rows(self.staging, start, stop, self.cache.page_size)
            self._executor.forward("draft", lambda: self.model.forward(rows, self.cache))

        self._executor.once("draft", "prefill", prefill, slot=slot)

    @property
    def keeps(self) -> bool:
        """Whether what was accepted has to be moved: of a tree, not of a chain."""
        return self.drafting.tree is not None

    def drafts_misses(self, n: int) -> bool:
        """Whether a round of n slots drafts what it misses, or gives it an n-gram."""
        return self.drafting.fan_out is None or self.drafting.fallback.choose(n) == "neural"

    def look_up(self, n: int, neural: bool = True) -> list[Tensor]:
        """The program that hands out the next speculation of the first n slots. Returns what the target is to be sent of it."""
        self.exchange.outcome_arrives(n)
        state, speculation, draft = self.state.first(n), self.speculation.first(n), self.draft.first(n)
        if self.drafting.fan_out is not None:
            self._see(state, speculation, draft)
        draft.look_up(state, speculation)

        def fallback() -> None:
            with self._executor.trace.span("draft", "fallback" if neural else "n-gram", batch=n):
                if not neural:
                    propose_ngram(state, speculation)
                elif self.drafting.tree is not None:
                    self._draft_tree(state, speculation, draft, self.drafting.tree)
                else:
                    self._draft_misses(state, speculation, draft)

        self._executor.when((speculation.hit == 0) & (state.done == 0), fallback)
        return self.exchange.speculation_leaves(n)

    def branch(self, n: int) -> None:
        """The program that prepares the cache of the round under way: K + 1 forward passes, to be hidden behind the target's one."""
        state, speculation, draft = self.state.first(n), self.speculation.first(n), self.draft.first(n)
        with self._executor.trace.span("draft", "extend"):
            ids = torch.cat([draft.last_token[:, None], speculation.tokens], dim=1)  # [n, K + 1]
            z = self._logits(state.rows(ids, draft.length, self.cache.page_size)).view(n, self.lookahead + 1, -1)
        with self._executor.trace.span("draft", "fork"):
            assert self.drafting.fan_out is not None  # there is a cache to fill
            guess, guess_k = ops.fork(
                z, speculation.tokens, speculation.length, self.drafting.fan_out, speculation.hit, self.budget, self._id_of
            )
            assert draft.z is not None
            draft.z.copy_(z)
            draft.guess.copy_(guess)
            draft.guess_k.copy_(guess_k)
        next_half = 1 - speculation.parity
        sequence = torch.arange(n, dtype=torch.int32, device=z.device).repeat_interleave(self.budget)
        trunk = (draft.length[:, None] + 1 + guess_k.clamp_min(0)).flatten()  # [n·B] keys of the trunk a branch sees
        ids = guess.flatten()
        for d in range(self.lookahead):
            with self._executor.trace.span("draft", f"branch {d}"):
                # [n·B, d + 1] places of the branch's own tokens
                scratch = draft.scratch[:, :, : d + 1].reshape(-1, d + 1).contiguous()
                rows = Rows(
                    ids=ids,
                    positions=trunk + d,
                    kv_slots=scratch[:, d].contiguous(),
                    row_seq=sequence,
                    prefix_len=trunk,
                    page_table=state.page_table,
                    suffix_slots=scratch,
                    suffix_len=torch.full_like(trunk, d + 1),
                )
                logits, position = self._logits(rows), rows.positions + 1
                ids = self._draw(state, speculation, logits, position, next_half, (slice(self.budget), d))[:, 0]
                draft.branch_tokens[:, :, d] = ids.view(n, self.budget)

    def keep(self, n: int, path: Tensor) -> None:
        """The program that makes an accepted tree path contiguous in the trunk; path: [n, T] from `ops.verify`."""
        assert self.drafting.tree is not None  # there is something to move
        self.drafting.tree.compact(self.cache, self.state.first(n), self.draft.length[:n], path)

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        """Take in what a round's look-up saw, and give `fork` better tables for the rounds to come. reports: of the sequences in it."""
        assert round.draft is not None and round.looked_up is not None
        how, (before, neural) = self.drafting, round.neural
        round.draft.wait()
        hits = sum(report.hit for report in reports)
        round.looked_up.span.details.update(hits=hits, misses=len(reports) - hits, seen=round.outcomes)
        round.verified.span.details.update(hits=hits, misses=len(reports) - hits)
        fallback = round.looked_up.span if hits < len(reports) and neural else None
        how.fallback.times(round.verified.span, round.draft.span, fallback)
        for after_hit, spec_len, k, rank in round.outcomes:
            if k < 0:
                continue
            how.fallback.outcome(hit=bool(after_hit), neural=before, tokens=k + 1)
            if how.measured is not None and how.fan_out is not None:
                how.measured.observe(bool(after_hit), spec_len, k, rank)
                if how.measured.observations % self.REFRESH == 0:
                    self._executor.write("draft", how.fan_out, how.measured.tables())

    def _see(self, state: SequenceState, speculation: Speculation, draft: DraftState) -> None:
        """Note of each outcome at which rank of its list the next token stood, guessed or not: [n, 4] `draft.seen`."""
        assert draft.z is not None
        outcome = state.outcome.index_select(1, speculation.parity.long())[:, 0]  # [n, 2] (k, next token)
        k, token = outcome[:, 0].long().clamp_min(0), outcome[:, 1:].long().clamp_min(0)
        length = speculation.length
        z = draft.z[torch.arange(len(k), device=k.device), k]  # [n, Vd]
        column, known = self._columns(token, z.shape[1])  # [n, 1]
        drafted = speculation.tokens.long().gather(1, k[:, None].clamp_max(self.lookahead - 1))
        excluded, drawn = self._columns(drafted, z.shape[1])
        value, ids = z.gather(1, column), torch.arange(z.shape[1], device=z.device)
        before = (z > value) | ((z == value) & (ids < column))
        before &= ~(drawn & (k < length)[:, None] & (ids == excluded))
        behind_all = max(z.shape[1], self.budget)  # where a token stands that the draft cannot propose
        rank = torch.where(known[:, 0], before.sum(1), behind_all)
        seen = torch.stack([speculation.hit.long(), length.long(), k, rank], dim=1)
        looked_up = (outcome[:, 0] >= 0) & (state.done == 0)
        draft.seen.copy_(torch.where(looked_up[:, None], seen, -1))

    def _columns(self, tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The draft's columns of target ids, and which of them there are."""
        columns = tokens if self._draft_id_of is None else self._draft_id_of[tokens].long()
        known = (columns >= 0) & (columns < size)
        return torch.where(known, columns, 0), known

    def _draft_misses(self, state: SequenceState, speculation: Speculation, draft: DraftState) -> None:
        """Draft K tokens behind the last committed one, for every slot: a hit's would be the tokens it has."""
        ids, first = self._behind_last(state, draft)
        drafted = []
        for d in range(self.lookahead):
            logits = self._logits(state.rows(ids, first, self.cache.page_size), last_of=ids.shape[1])
            first = draft.length + d + 1
            at = (slice(self.budget, self.budget + 1), d)
            ids = self._draw(state, speculation, logits, first, speculation.parity, at)
            drafted.append(ids)
        hit = speculation.hit[:, None] != 0
        speculation.tokens.copy_(torch.where(hit, speculation.tokens, torch.cat(drafted, dim=1)))

    def _draft_tree(self, state: SequenceState, speculation: Speculation, draft: DraftState, tree: Tree) -> None:
        """Draft a tree behind the last committed token of every slot, a forward pass a level."""
        # The look-up knows of chains: it leaves how many tokens there is room for.
        speculation.length.copy_(tree.nodes_within[speculation.length.clamp_max(tree.depth).long()])
        ids, first = self._behind_last(state, draft)
        rows, last_of = state.rows(ids, first, self.cache.page_size), ids.shape[1]
        for depth, children in enumerate(tree.children):
            nodes, below = tree.levels[depth], tree.levels[depth + 1]
            if depth > 0:
                level = speculation.tokens[:, nodes.start - 1 : nodes.stop - 1]
                rows, last_of = tree.rows(state, draft.length, level, nodes, self.cache.page_size), 1
            logits = self._logits(rows, last_of)
            position = (draft.length + depth + 1).repeat_interleave(nodes.stop - nodes.start)
            drawn = self._draw(state, speculation, logits, position, speculation.parity, (0, nodes), children)
            speculation.tokens[:, below.start - 1 : below.stop - 1] = drawn.view(len(state.done), -1)

    def _behind_last(self, state: SequenceState, draft: DraftState) -> tuple[Tensor, Tensor]:
        """What to run first to draft behind the last committed token: ids [n, 1 or 2], and the position of the first of them."""
        last = draft.last_token[:, None]
        if self.drafting.fan_out is not None:
            return last, draft.length
        # No extend has stored the token before it, where that was proposed last and accepted: store it now, or again.
        first = (draft.length - 1).clamp_min(0)
        return torch.cat([state.tokens.gather(1, first[:, None].long()), last], dim=1), first

    def _logits(self, rows: Rows, last_of: int = 1) -> Tensor:
        """Logits of the rows, or of the last of each run of `last_of`."""
        return self._executor.forward(
            "draft", lambda: self.model.logits(self.model.forward(rows, self.cache)[last_of - 1 :: last_of].contiguous())
        )

    def _draw(
        self,
        state: SequenceState,
        speculation: Speculation,
        logits: Tensor,
        position: Tensor,
        half: Tensor,
        at: tuple[slice | int, slice | int],
        m: int = 1,
    ) -> Tensor:
        """Draw m tokens of each row and keep the distribution they came from, at these (addresses, rows) of q.

        Returns [rows, m] int32 target ids.
        """
        n = len(state.done)
        per_slot = logits.view(n, -1, logits.shape[-1])  # [n, branches or nodes, Vd]
        stats = state.row_stats(per_slot, self.drafting.saguaro_f, self.drafting.saguaro_c)
        if speculation.q_logits is not None and speculation.q_stats is not None:
            for q, values in ((speculation.q_logits, per_slot), (speculation.q_stats, stats)):
                q[:, :, at[0], at[1]].index_copy_(1, half.long(), values[:, None])
        seed = state.seed.repeat_interleave(per_slot.shape[1])
        return ops.sample(logits, stats.view(-1, ops.STATS), seed, position, m, self._id_of)
