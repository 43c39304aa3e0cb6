"""What a miss gets (arXiv 2603.03251, section 4.3), and speculation without a draft model.

neural: the draft drafts the K tokens now, and the whole batch waits for it. ngram: what followed the same words earlier in the
sequence itself, at no cost. `Fallback` chooses between them; `NgramSpeculator` has nothing but the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import torch

from ssd import ops
from ssd.decoding.speed_model import SsdModel
from ssd.decoding.state import DraftState, SequenceState, Speculation
from ssd.runtime.trace import Span


def propose_ngram(state: SequenceState, speculation: Speculation) -> None:
    """Give every miss the tokens that followed the longest earlier match of its own ending: proposed, not drawn (δ)."""
    tokens, length = ops.ngram_propose(state.tokens, state.length, speculation.lookahead)
    missed = speculation.hit == 0
    speculation.tokens.copy_(torch.where(missed[:, None], tokens, speculation.tokens))
    speculation.length.copy_(torch.where(missed, torch.minimum(length, speculation.length), speculation.length))
    speculation.q_address.masked_fill_(missed, -1)


@dataclass
class Fallback:
    """Which fallback a round of n sequences uses. name: "neural", "ngram", or "auto", the cheaper one by what was measured.

    Large batches wait for one miss together, so the neural fallback pays up to a batch size b* (Theorem 17) and n-gram beyond. Until
    both times and rates are known, "auto" is neural.
    """

    KEPT = 64  # the newest rounds that times are taken from
    ENOUGH = 8  # rounds before a figure counts
    PRIOR_NGRAM = 1.2  # tokens a round behind an n-gram proposal, until there were any

    name: str = "auto"
    t_round: list[float] = field(default_factory=list)  # seconds, of max(T_v, T_d)
    t_neural: list[float] = field(default_factory=list)  # seconds, of a fallback
    look_ups: int = 0
    hits: int = 0
    committed: dict[str, list[int]] = field(default_factory=lambda: {"hit": [0, 0], "neural": [0, 0], "ngram": [0, 0]})

    def choose(self, n: int) -> str:
        if self.name != "auto":
            return self.name
        return "ngram" if n > self.switch(n) else "neural"

    def switch(self, limit: int) -> int:
        """b*: the largest batch, up to `limit`, for which drafting a miss pays."""
        if len(self.t_neural) < self.ENOUGH or self.look_ups < self.ENOUGH:
            return limit
        p_hit = self.hits / self.look_ups
        t_round, t_neural = median(self.t_round), median(self.t_neural)

        def rate(n: int, behind_miss: float, t_fallback: float) -> float:
            behind_hit = self._tokens("hit", self._tokens("neural", 1.0))
            return SsdModel(p_hit, behind_hit, behind_miss, t_round, 0.0, t_fallback, batch=n).tokens_per_s()

        for n in range(1, limit + 1):
            neural, ngram = self._tokens("neural", 1.0), self._tokens("ngram", self.PRIOR_NGRAM)
            if rate(n, ngram, 0.0) > rate(n, neural, t_neural):
                return n - 1
        return limit

    def _tokens(self, kind: str, prior: float) -> float:
        """Tokens a round whose speculation came this way."""
        tokens, rounds = self.committed[kind]
        return (tokens + prior * self.ENOUGH) / (rounds + self.ENOUGH)

    def times(self, verify: Span, draft: Span, fallback: Span | None) -> None:
        """What one round took. fallback: the look-up that drafted what it missed, if there was one."""
        self.t_round = [*self.t_round[1 - self.KEPT :], max(verify.ms, draft.ms) / 1e3]
        if fallback is not None:
            self.t_neural = [*self.t_neural[1 - self.KEPT :], fallback.ms / 1e3]

    def outcome(self, *, hit: bool, neural: bool, tokens: int) -> None:
        """What one sequence got in a round, from which kind of speculation."""
        self.look_ups += 1
        self.hits += hit
        counts = self.committed["hit" if hit else "neural" if neural else "ngram"]
        counts[0] += tokens
        counts[1] += 1


class NgramSpeculator:
    """Speculative decoding with no draft model: what follows is what followed before."""

    budget = 0
    keeps = False

    def __init__(self, state: SequenceState, speculation: Speculation, draft: DraftState) -> None:
        self.state = state
        self.speculation = speculation
        self.draft = draft

    def stage(self, samples: bool) -> None:
        """Nothing is drawn: no distribution is kept."""

    def store(self, slot: int, start: int, stop: int) -> None:
        """There is nothing to store."""

    def look_up(self, n: int) -> None:
        state, speculation, draft = self.state.first(n), self.speculation.first(n), self.draft.first(n)
        draft.look_up(state, speculation)
        propose_ngram(state, speculation)

    def keep(self, n: int, path: torch.Tensor) -> None:
        """There is nothing to keep."""
