"""The draft's side of a round (arXiv 2603.03251, section 3).

look_up     the outcome of the last verification among the branches prepared for it; a miss is drafted now (the neural fallback)
branch      while the target verifies: extend the trunk by the speculation, fork into the likely outcomes, draft behind each

Plain speculative decoding is the same with an empty cache: every look-up is a miss. That a hit and a miss hand out the same
tokens for the same prefix is what makes sampled SSD equal sampled SD token for token: both draft with the same noise, and a
branch's keys give the same bits from scratch pages as from the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.verifier import prompt_rows
from ssd.models.transformer import KVCache, Rows, Transformer
from ssd.runtime.executor import Executor
from ssd.runtime.trace import Span
from ssd.state import DraftState, SequenceState, Speculation


class Speculator:
    """Drafts with `model` for the sequences of `state` and hands out `speculation`.

    fan_out: [2, K+1, K+1] int32 tables, see `ops.fork`; None keeps the cache empty. id_of: [Vd] int32, the target ids of a draft with a
    vocabulary of its own.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        state: SequenceState,
        speculation: Speculation,
        draft: DraftState,
        executor: Executor,
        fan_out: Tensor | None,
        id_of: Tensor | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.state = state
        self.speculation = speculation
        self.draft = draft
        self.lookahead = speculation.lookahead
        self.budget = draft.guess.shape[1]
        self._executor = executor
        self._fan_out = fan_out
        self._id_of = id_of

    def prefill(self, slot: int) -> None:
        """Store a prompt's K/V in the trunk. Called before the target's own prefill moves the sequence on."""
        if float(self.state.temperature[slot]) > 0:
            self.speculation.hold_distributions(self.budget, self.model.vocab_size)
        with self._executor.trace.span("draft", "prefill", slot=slot):
            for rows in prompt_rows(self.state.only(slot), self.cache.page_size):
                self._executor.forward("draft", lambda: self.model.forward(rows, self.cache))  # noqa: B023

    def look_up(self, n: int) -> Span | None:
        """Hand out the next speculation of the first n slots. Returns when the misses were drafted, if there were any."""
        state, speculation, draft = self.state.first(n), self.speculation.first(n), self.draft.first(n)
        with self._executor.trace.span("draft", "look up", batch=n) as span:
            ops.cache_lookup(
                outcome=state.outcome,
                guess=draft.guess,
                guess_k=draft.guess_k,
                branch_tokens=draft.branch_tokens,
                length=state.length,
                last_token=state.last_token,
                max_length=state.max_length,
                done=state.done,
                parity=speculation.parity,
                draft_length=draft.length,
                draft_last_token=draft.last_token,
                spec_tokens=speculation.tokens,
                spec_len=speculation.length,
                hit=speculation.hit,
                q_address=speculation.q_address,
            )
            missed = (speculation.hit == 0) & (state.done == 0)
            if self._executor.trace.recording:
                span.details.update(hits=int(speculation.hit.sum()), misses=int(missed.sum()))

        def fallback() -> Span:
            with self._executor.trace.span("draft", "fallback", batch=n) as span:
                self._draft_misses(state, speculation, draft)
            return span

        return self._executor.when(missed, fallback)

    def branch(self, n: int) -> Span:
        """Prepare the cache of the round under way: K + 1 forward passes, to be hidden behind the target's one."""
        state, speculation, draft = self.state.first(n), self.speculation.first(n), self.draft.first(n)
        with self._executor.trace.span("draft", "speculate", batch=n) as span:
            with self._executor.trace.span("draft", "extend"):
                ids = torch.cat([draft.last_token[:, None], speculation.tokens], dim=1)  # [n, K + 1]
                z = self._logits(state.rows(ids, draft.length, self.cache.page_size)).view(n, self.lookahead + 1, -1)
            with self._executor.trace.span("draft", "fork"):
                assert self._fan_out is not None  # there is a cache to fill
                guess, guess_k = ops.fork(
                    z, speculation.tokens, speculation.length, self._fan_out, speculation.hit, self.budget, self._id_of
                )
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
                    ids = self._draw(
                        state, speculation, self._logits(rows), rows.positions + 1, next_half, slice(self.budget), d
                    )
                    draft.branch_tokens[:, :, d] = ids.view(n, self.budget)
        return span

    def _draft_misses(self, state: SequenceState, speculation: Speculation, draft: DraftState) -> None:
        """Draft K tokens behind the last committed one, for every slot: a hit's would be the tokens it has."""
        ids = draft.last_token[:, None]  # [n, 1]
        first = draft.length
        if self._fan_out is None:  # no extend has stored a last token accepted in full: store it now, or again
            first = (draft.length - 1).clamp_min(0)
            ids = torch.cat([state.tokens.gather(1, first[:, None].long()), ids], dim=1)
        drafted = []
        for d in range(self.lookahead):
            logits = self._logits(state.rows(ids, first, self.cache.page_size), last_of=ids.shape[1])
            first = draft.length + d + 1
            address = slice(self.budget, self.budget + 1)
            ids = self._draw(state, speculation, logits, first, speculation.parity, address, d)[:, None]
            drafted.append(ids)
        hit = speculation.hit[:, None] != 0
        speculation.tokens.copy_(torch.where(hit, speculation.tokens, torch.cat(drafted, dim=1)))

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
        addresses: slice,
        d: int,
    ) -> Tensor:
        """Draw token d of each row's speculation and keep the distribution it came from. Returns [rows] int32 target ids."""
        n = len(state.done)
        per_slot = logits.view(n, -1, logits.shape[-1])  # [n, branches, Vd]
        stats = state.row_stats(per_slot)
        if speculation.q_logits is not None and speculation.q_stats is not None:
            speculation.q_logits[:, :, addresses, d].index_copy_(1, half.long(), per_slot[:, None])
            speculation.q_stats[:, :, addresses, d].index_copy_(1, half.long(), stats[:, None])
        seed = state.seed.repeat_interleave(per_slot.shape[1])
        return ops.sample(logits, stats.view(-1, ops.STATS), seed, position, 1, self._id_of)[:, 0]
