"""The target's side of a round: run the speculation's rows, decide, commit."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd import ops
from ssd.decoding.round import Verification
from ssd.decoding.tree import Tree
from ssd.models.transformer import KVCache, Rows, Transformer
from ssd.runtime.executor import Executor
from ssd.runtime.trace import Span
from ssd.state import SequenceState, Speculation

PREFILL_CHUNK = 256  # prompt rows a forward pass: they share one read of the weights


class Verifier:
    """Verifies `speculation` with the target model and commits the outcome to `state`.

    draft_id_of: [V] int32, target id → draft column, for a draft with a vocabulary of its own. tree: the shape of what is verified;
    None: a chain.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        state: SequenceState,
        speculation: Speculation,
        executor: Executor,
        draft_id_of: Tensor | None = None,
        tree: Tree | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.state = state
        self.speculation = speculation
        self._executor = executor
        self._draft_id_of = draft_id_of
        self._tree = tree
        self._nothing = Speculation.allocate(1, 0, state.done.device)

    def prefill(self, slot: int) -> Verification:
        """Store a prompt's K/V and commit the token behind it: a verification of nothing, behind the prompt's last token.

        A prompt is prefilled by itself, in chunks of a fixed size, so its K/V depends on nothing else in the batch.
        """
        state = self.state.only(slot)
        with self._executor.trace.span("target", "prefill", slot=slot) as span:
            for rows in prompt_rows(state, self.cache.page_size):
                hidden = self._executor.forward("target", lambda: self.model.forward(rows, self.cache))  # noqa: B023
            result = self._decide(state, self._nothing, self.model.logits(hidden[-1:]), span)
        state.outcome.fill_(-1)  # nothing was guessed about it: the first look-up is a miss
        return result

    def verify(self, n: int) -> Verification:
        """One round of the first n slots."""
        state, speculation = self.state.first(n), self.speculation.first(n)
        with self._executor.trace.span("target", "verify", batch=n) as span:
            ids = torch.cat([state.last_token[:, None], speculation.tokens], dim=1)  # [n, K + 1]
            tree, page_size = self._tree, self.cache.page_size
            if tree is None:
                rows = state.rows(ids, state.length, page_size)
            else:
                rows = tree.rows(state, state.length, ids, slice(0, tree.nodes), page_size)
            logits = self._executor.forward("target", lambda: self.model.logits(self.model.forward(rows, self.cache)))
            if tree is None:
                return self._decide(state, speculation, logits, span)
            length = state.length.clone()
            result = self._decide(state, speculation, logits, span, tree.parent.repeat(n, 1))
            tree.compact(self.cache, state, length, result.path)
            return result

    def _decide(
        self, state: SequenceState, speculation: Speculation, logits: Tensor, span: Span, parent: Tensor | None = None
    ) -> Verification:
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
        return Verification(p_logits, path, span)


def prompt_rows(state: SequenceState, page_size: int) -> list[Rows]:
    """The rows of one slot's prompt, its last token included, in chunks."""
    count = int(state.length[0]) + 1
    starts = range(0, count, PREFILL_CHUNK)
    position = torch.tensor(starts, dtype=torch.int32, device=state.length.device)
    chunks = [state.tokens[:, first : min(count, first + PREFILL_CHUNK)] for first in starts]
    return [state.rows(chunk, position[i : i + 1], page_size) for i, chunk in enumerate(chunks)]
