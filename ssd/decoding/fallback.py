"""Which fallback a miss gets (arXiv 2603.03251, section 4.3).

neural: the draft drafts the K tokens now, and the whole batch waits for it. ngram: the miss gets what followed the same words earlier
in the sequence itself, at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from ssd.decoding.speed_model import SsdModel
from ssd.runtime.trace import Span


@dataclass
class FallbackPolicy:
    """Chooses the fallback of a round of n sequences. name: "neural", "ngram", or "auto", the cheaper one by measurement.

    Large batches wait for one miss together, so the neural fallback pays up to a batch size b* (Theorem 17) and n-gram beyond. Until
    both times and rates are known, "auto" is neural.
    """

    KEPT = 64  # the newest rounds that times are taken from
    ENOUGH = 8  # rounds before a figure counts
    PRIOR_NGRAM = 1.2  # tokens of a round that verifies an n-gram, until there were any

    name: str = "auto"
    t_round: list[float] = field(default_factory=list)  # seconds, of max(T_v, T_d)
    t_neural: list[float] = field(default_factory=list)  # seconds, of a fallback
    committed: dict[str, list[int]] = field(default_factory=lambda: {"hit": [0, 0], "neural": [0, 0], "ngram": [0, 0]})
    """[tokens, rounds] of one sequence, by where their speculation came from."""

    @property
    def look_ups(self) -> int:
        return sum(rounds for _, rounds in self.committed.values())

    @property
    def hits(self) -> int:
        return self.committed["hit"][1]

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

        def rate(n: int, tokens_miss: float, t_fallback: float) -> float:
            tokens_hit = self._tokens("hit", self._tokens("neural", 1.0))
            return SsdModel(p_hit, tokens_hit, tokens_miss, t_round, 0.0, t_fallback, batch=n).tokens_per_s()

        for n in range(1, limit + 1):
            neural, ngram = self._tokens("neural", 1.0), self._tokens("ngram", self.PRIOR_NGRAM)
            if rate(n, ngram, 0.0) > rate(n, neural, t_neural):
                return n - 1
        return limit

    def _tokens(self, kind: str, prior: float) -> float:
        """Tokens of a round whose speculation came from there."""
        tokens, rounds = self.committed[kind]
        return (tokens + prior * self.ENOUGH) / (rounds + self.ENOUGH)

    def times(self, verify: Span, draft: Span, fallback: Span | None) -> None:
        """The times of one round. fallback: the look-up that drafted for its misses, if there was one."""
        self.t_round = [*self.t_round[1 - self.KEPT :], max(verify.ms, draft.ms) / 1e3]
        if fallback is not None:
            self.t_neural = [*self.t_neural[1 - self.KEPT :], fallback.ms / 1e3]

    def outcome(self, *, hit: bool, neural: bool, tokens: int) -> None:
        """One sequence committed this many tokens in a round, from this kind of speculation."""
        counts = self.committed["hit" if hit else "neural" if neural else "ngram"]
        counts[0] += tokens
        counts[1] += 1
