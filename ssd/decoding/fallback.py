"""The choice of the fallback after a miss (arXiv 2603.03251, section 4.3).

neural: the draft drafts the K tokens now, and the whole batch waits for it. ngram: the miss gets the tokens that followed the
same words earlier in the sequence, at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from ssd.decoding.speed_model import SsdModel
from ssd.options import FallbackName
from ssd.runtime.trace import Span


@dataclass
class FallbackPolicy:
    """Chooses the fallback of a round of n sequences. name: "neural", "ngram", or "auto" (the cheaper one, as measured).

    A whole batch waits for one miss. So the neural fallback pays up to a batch size b* (Theorem 17), and n-grams pay above it.
    "auto" is neural until times and rates are known.
    """

    KEPT = 64  # newest rounds whose times are kept
    ENOUGH = 8  # rounds before a figure counts
    PRIOR_NGRAM = 1.2  # the prior of the tokens committed by a round that verifies an n-gram

    name: FallbackName = "auto"
    t_round: list[float] = field(default_factory=list)  # seconds: max(T_v, T_d) of each round
    t_neural: list[float] = field(default_factory=list)  # seconds: T_b of each round with a drafted miss
    committed: dict[str, list[int]] = field(default_factory=lambda: {"hit": [0, 0], "neural": [0, 0], "ngram": [0, 0]})
    """[tokens, rounds] of one sequence, by the origin of its speculation."""

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

    def _tokens(self, origin: str, prior: float) -> float:
        """Tokens that a round commits for one sequence whose speculation has this origin."""
        tokens, rounds = self.committed[origin]
        return (tokens + prior * self.ENOUGH) / (rounds + self.ENOUGH)

    def observe_times(self, verification: Span, drafting: Span, fallback: Span | None) -> None:
        """Take the times of one round. fallback: the look-up, if it drafted for a miss."""
        self.t_round = [*self.t_round[1 - self.KEPT :], max(verification.ms, drafting.ms) / 1e3]
        if fallback is not None:
            self.t_neural = [*self.t_neural[1 - self.KEPT :], fallback.ms / 1e3]

    def observe_outcome(self, *, hit: bool, neural: bool, tokens: int) -> None:
        """Count the tokens that one sequence committed in a round. hit, neural: the origin of its speculation."""
        counts = self.committed["hit" if hit else "neural" if neural else "ngram"]
        counts[0] += tokens
        counts[1] += 1
