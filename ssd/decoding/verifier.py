"""The target's side of a round: run the speculation's rows, decide, commit."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.link import Exchange
from ssd.decoding.prefill import Admitted, chunk_rows, stage
from ssd.decoding.round import Decided, Verification
from ssd.decoding.state import SequenceState, Speculation
from ssd.decoding.tree import Tree
from ssd.kv.cache import KVCache
from ssd.models.transformer import Transformer
from ssd.runtime.executor import Executor, Run


class Verifier:
    """Verifies the speculation with the target model and commits the outcome to the state, the target's tables of `exchange`.

    draft_id_of: [V] int32, target id → draft column, for a draft with a vocabulary of its own. tree: the shape of what is verified;
    None: a chain.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        exchange: Exchange,
        executor: Executor,
        draft_id_of: Tensor | None = None,
        tree: Tree | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.exchange = exchange
        self.state = exchange.target.state
        self.staging = exchange.target.staging
        self.speculation = exchange.target.speculation
        self._executor = executor
        self._draft_id_of = draft_id_of
        self._tree = tree
        self._nothing = Speculation.allocate(1, 0, self.state.done.device)

    def stage(self, request: Admitted) -> None:
        """Take up a request whose prompt is to be stored. Called `alone`."""
        stage(self.staging, self._executor, request)

    def store(self, slot: int, start: int, stop: int) -> None:
        """Store the K/V of a chunk of the staged prompt, which is to get this slot."""
        self._executor.once("target", "prefill", lambda: self._forward_chunk(start, stop), slot=slot)

    def enter(self, slot: int, start: int, stop: int) -> Verification:
        """Store the last chunk, commit the first token, and switch the slot on: a verification of nothing. Called `alone`."""

        def prefill() -> Decided:
            staging = self.staging
            logits, path = self._decide(staging, self._nothing, self.model.logits(self._forward_chunk(start, stop)[-1:]))
            staging.outcome.fill_(-1)  # nothing was guessed about it: the first look-up is a miss
            self.state.only(slot).copy_from(staging)
            return Decided(logits, path, self._report(staging, self._nothing))

        return self._reported(self._executor.once("target", "prefill", prefill, slot=slot).value)

    def _forward_chunk(self, start: int, stop: int) -> Tensor:
        rows = chunk_rows(self.staging, start, stop, self.cache.page_size)
        return self._executor.forward("target", lambda: self.model.forward(rows, self.cache))

    def retire(self, slot: int) -> None:
        """Switch a slot off."""
        with self._executor.alone(), self._executor.on("target"):
            self.state.retire(slot)

    def begin(self, n: int, *after: Run) -> tuple[Verification, Run]:
        """Have a round of the first n slots verified, behind these runs of the draft's."""
        run = self._executor.run("target", "verify", lambda: self.verify(n), n, self.speculation.sampled, after)
        return self._reported(run.value), run

    def verify(self, n: int) -> Decided:
        """The program of a round of the first n slots."""
        self.exchange.speculation_arrives(n)
        state, speculation = self.state.first(n), self.speculation.first(n)
        ids = torch.cat([state.last_token[:, None], speculation.tokens], dim=1)  # [n, K + 1]
        tree, page_size = self._tree, self.cache.page_size
        if tree is None:
            rows = state.rows(ids, state.length, page_size)
        else:
            rows = tree.rows(state, state.length, ids, slice(0, tree.nodes), page_size)
        logits = self._executor.forward("target", lambda: self.model.logits(self.model.forward(rows, self.cache)))
        if tree is None:
            p_logits, path = self._decide(state, speculation, logits)
        else:
            length = state.length.clone()
            p_logits, path = self._decide(state, speculation, logits, tree.parent.repeat(n, 1))
            tree.compact(self.cache, state, length, path)
        return Decided(p_logits, path, self._report(state, speculation))

    def _reported(self, decided: Decided) -> Verification:
        return Verification(decided, self._executor.read("target", decided.report))

    def _decide(
        self, state: SequenceState, speculation: Speculation, logits: Tensor, parent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Commit what p's logits say of the speculation: the logits [n, T, V], and the path [n, T]."""
        p_logits = logits.view(len(state.done), -1, self.model.vocab_size)  # [n, T, V]
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
        """[n, COUNTS + nodes] int32, the rows of `SlotReport`."""
        behind = torch.arange(-self.speculation.lookahead, 1, dtype=torch.int64, device=state.length.device)
        newest = state.tokens.gather(1, (state.length[:, None] + behind).clamp_min(0))
        accepted = state.outcome.index_select(1, speculation.parity.long())[:, 0, 0]
        each = (state.length, state.done, accepted, speculation.length, speculation.hit)
        return torch.cat([torch.stack([column.int() for column in each], dim=1), newest], dim=1)
