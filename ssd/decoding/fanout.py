"""How the budget of branches is shared among accepted counts (arXiv 2603.03251, section 4.1)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ACCEPTANCE = 0.6  # the prior of a token's acceptance: between a draft made of the target's own layers and a distilled one
DECAY = 1.0  # the prior of r in 1 − h(F) = c·F^(−r), h the chance that the next token is among F guesses
FIRST_MISS = 0.6  # the prior of c: what a single guess misses

Counts = list[int]


def geometric(lookahead: int, budget: int, acceptance: float = ACCEPTANCE, decay: float = DECAY) -> Counts:
    """Theorem 12: F_k = F_0·α^(k/(1+r)) for k < K, and that times (1 − α)^(−1/(1+r)) for k = K, scaled and rounded to sum to budget.

    Rounding goes to the largest remainder, ties to the smaller k. Returns lookahead + 1 numbers.
    """
    share = [acceptance ** (k / (1 + decay)) for k in range(lookahead + 1)]
    share[-1] *= (1 - acceptance) ** (-1 / (1 + decay))
    exact = [budget * s / sum(share) for s in share]
    counts = [int(e) for e in exact]
    by_remainder = sorted(range(lookahead + 1), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: budget - sum(counts)]:
        counts[k] += 1
    return counts


def uniform(lookahead: int, budget: int) -> Counts:
    """The same for every accepted count; the remainder goes to the smallest ones."""
    each, left = divmod(budget, lookahead + 1)
    return [each + (k < left) for k in range(lookahead + 1)]


def best(probability: Sequence[float], gains: Sequence[Sequence[float]], budget: int) -> Counts:
    """The optimum for known curves: guesses are handed out one by one, each to the k where it adds most.

    probability: P(k). gains[k][F]: h_k(F + 1) − h_k(F), not increasing in F, at least `budget` of them. Ties go to the smaller k.
    """
    counts = [0] * len(probability)
    queue = [(-p * gain[0], k) for k, (p, gain) in enumerate(zip(probability, gains, strict=True))] if budget else []
    heapq.heapify(queue)
    for _ in range(budget):
        _, k = heapq.heappop(queue)
        counts[k] += 1
        if counts[k] < budget:
            heapq.heappush(queue, (-probability[k] * gains[k][counts[k]], k))
    return counts


def power_law_gains(budget: int, first_miss: float = FIRST_MISS, decay: float = DECAY) -> np.ndarray:
    """[budget] increments of h(F) = 1 − c·F^(−r), h(0) = 0."""
    hits = 1 - first_miss * np.arange(1, budget + 1, dtype=np.float64) ** -decay
    return np.diff(hits, prepend=0.0)


def _not_increasing(gains: np.ndarray) -> np.ndarray:
    """The nearest sequence that never rises (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # (mean, length)
    for gain in gains.tolist():
        mean, length = gain, 1
        while blocks and blocks[-1][0] < mean:
            before, count = blocks.pop()
            mean, length = (mean * length + before * count) / (length + count), length + count
        blocks.append((mean, length))
    return np.repeat([mean for mean, _ in blocks], [length for _, length in blocks])


class Measured:
    """Fan-out from the outcomes seen: how often each drafted token was accepted, and at which rank the next token stood.

    P(k) and the hit curves begin at their priors (acceptance α, and the power law) and give way to counts. A position's curve leans
    on the curves of all positions of its kind: after a rejection, or after a speculation accepted whole. Acceptance is measured apart
    after a hit and after a miss: a speculation prepared for a likely outcome is a likelier one.
    """

    PRIOR_TRIALS = 8.0  # seen tokens that weigh as much as the prior of their position's acceptance
    PRIOR_RANKS = 16.0  # seen outcomes that weigh as much as the power law
    KIND_RANKS = 32.0  # seen outcomes of one position that weigh as much as all of its kind

    def __init__(self, lookahead: int, budget: int) -> None:
        self.lookahead = lookahead
        self.budget = budget
        self._tried = np.zeros((2, lookahead))  # by (after a miss or a hit, position)
        self._accepted = np.zeros((2, lookahead))
        self._ranks = np.zeros((lookahead + 1, budget))  # by (k, rank); the last k is a speculation accepted whole
        self._outcomes = np.zeros(lookahead + 1)
        self.observations = 0

    def observe(self, after_hit: bool, spec_len: int, k: int, rank: int) -> None:
        """One outcome: k of spec_len tokens were accepted, and the next token was guess number `rank` (from 0) of its list."""
        self.observations += 1
        self._tried[int(after_hit), : min(k + 1, spec_len)] += 1
        self._accepted[int(after_hit), :k] += 1
        place = self.lookahead if k == spec_len else k
        self._outcomes[place] += 1
        if 0 <= rank < self.budget:
            self._ranks[place, rank] += 1

    def probability(self, after_hit: bool, spec_len: int) -> list[float]:
        """P(k) for k = 0..spec_len."""
        seen = int(after_hit)
        prior = self.PRIOR_TRIALS * ACCEPTANCE
        acceptance = (self._accepted[seen] + prior) / (self._tried[seen] + self.PRIOR_TRIALS)
        reached = np.concatenate([[1.0], np.cumprod(acceptance[:spec_len])])
        rejected = np.append(1 - acceptance[:spec_len], 1.0)
        return (reached * rejected).tolist()  # type: ignore[no-any-return]

    def gains(self, spec_len: int) -> list[list[float]]:
        """Increments of h_k for k = 0..spec_len, [budget] each, not increasing."""
        prior = power_law_gains(self.budget)
        kinds = {}
        for whole, places in ((False, slice(0, self.lookahead)), (True, slice(self.lookahead, None))):
            seen, outcomes = self._ranks[places].sum(0), self._outcomes[places].sum()
            kinds[whole] = (seen + self.PRIOR_RANKS * prior) / (outcomes + self.PRIOR_RANKS)
        curves = []
        for k in range(spec_len + 1):
            place = self.lookahead if k == spec_len else k
            of_kind = kinds[k == spec_len]
            own = (self._ranks[place] + self.KIND_RANKS * of_kind) / (self._outcomes[place] + self.KIND_RANKS)
            curves.append(_not_increasing(own).tolist())
        return curves

    def tables(self) -> Tensor:
        """The table `ops.fork` reads, the best for the outcomes seen so far."""
        rows = [
            [_padded(best(self.probability(after_hit, length), self.gains(length), self.budget), self.lookahead)
             for length in range(self.lookahead + 1)]
            for after_hit in (False, True)
        ]  # fmt: skip
        return torch.tensor(rows, dtype=torch.int32)


def tables(fan_out: str | Sequence[int], lookahead: int, budget: int) -> Tensor:
    """The table `ops.fork` reads: [2, K+1, K+1] int32 by (after a miss or a hit, spec_len, k), each row summing to budget.

    fan_out: "geometric", "uniform", "measured" (its table before anything was seen), or an explicit list. A list keeps its numbers where
    the speculation is shorter, and gives the rest to its last outcome.
    """
    if fan_out == "measured":
        return Measured(lookahead, budget).tables()
    rows = []
    for length in range(lookahead + 1):
        if isinstance(fan_out, str):
            row = {"geometric": geometric, "uniform": uniform}[fan_out](length, budget)
        else:
            row = [*fan_out[:length], budget - sum(fan_out[:length])]
        rows.append(_padded(row, lookahead))
    return torch.tensor([rows, rows], dtype=torch.int32)


def _padded(row: Counts, lookahead: int) -> Counts:
    return row + [0] * (lookahead + 1 - len(row))
