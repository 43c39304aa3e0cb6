"""The fan-out: shares of the branch budget by accepted count (arXiv 2603.03251, section 4.1)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ACCEPTANCE = 0.6  # the prior of a token's acceptance: between a draft made of the target's own layers and a distilled one
DECAY = 1.0  # the prior of r in 1 − h(F) = c·F^(−r), where h is the chance that the next token is among F guesses
FIRST_MISS = 0.6  # the prior of c: the chance that a single guess misses

Counts = list[int]


def geometric(lookahead: int, budget: int, acceptance: float = ACCEPTANCE, decay: float = DECAY) -> Counts:
    """Theorem 12: F_k = F_0·α^(k/(1+r)), for k = K times (1 − α)^(−1/(1+r)), scaled and rounded to sum to the budget.

    The largest remainders are rounded up; ties go to the smaller k. Returns lookahead + 1 numbers.
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
    """Equal shares for all accepted counts; the remainder goes to the smallest counts."""
    share, remainder = divmod(budget, lookahead + 1)
    return [share + (k < remainder) for k in range(lookahead + 1)]


def best(probability: Sequence[float], gains: Sequence[Sequence[float]], budget: int) -> Counts:
    """The optimum for known hit curves: each guess in turn goes to the k where it adds most. Ties go to the smaller k.

    probability: P(k). gains[k][F]: h_k(F + 1) − h_k(F), not increasing in F, for at least `budget` values of F.
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
    """The increments of h(F) = 1 − c·F^(−r) with h(0) = 0: [budget] float64."""
    hits = 1 - first_miss * np.arange(1, budget + 1, dtype=np.float64) ** -decay
    return np.diff(hits, prepend=0.0)


def _not_increasing(gains: np.ndarray) -> np.ndarray:
    """The nearest sequence that never rises (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # (mean, length)
    for gain in gains.tolist():
        mean, length = gain, 1
        while blocks and blocks[-1][0] < mean:
            last_mean, count = blocks.pop()
            mean, length = (mean * length + last_mean * count) / (length + count), length + count
        blocks.append((mean, length))
    return np.repeat([mean for mean, _ in blocks], [length for _, length in blocks])


class Measured:
    """The best fan-out for the outcomes so far: how often each drafted token was accepted, and the rank of each next token.

    P(k) and the hit curves start from their priors (acceptance α, and the power law); counts outweigh these over time. There
    are two kinds of outcomes: a rejection, and a speculation accepted whole. The curve of one accepted count also uses the
    counts of all outcomes of its kind. Acceptance has separate counts after a hit and after a miss, because a speculation for a
    likely outcome is accepted more often.
    """

    PRIOR_TRIALS = 8.0  # tokens that weigh as much as the prior of their position's acceptance
    PRIOR_RANKS = 16.0  # outcomes that weigh as much as the power law
    KIND_RANKS = 32.0  # outcomes with one accepted count that weigh as much as all outcomes of their kind

    def __init__(self, lookahead: int, budget: int) -> None:
        self.lookahead = lookahead
        self.budget = budget
        self._tried = np.zeros((2, lookahead))  # by (after a miss or a hit, position)
        self._accepted = np.zeros((2, lookahead))
        self._ranks = np.zeros((lookahead + 1, budget))  # by (k, rank); the last k is a speculation accepted whole
        self._outcomes = np.zeros(lookahead + 1)
        self.observations = 0

    def observe(self, after_hit: bool, spec_len: int, k: int, rank: int) -> None:
        """Count one outcome: k of spec_len tokens were accepted.

        rank: from 0, the next token's among the draft's guesses for k.
        """
        self.observations += 1
        self._tried[int(after_hit), : min(k + 1, spec_len)] += 1
        self._accepted[int(after_hit), :k] += 1
        row = self.lookahead if k == spec_len else k
        self._outcomes[row] += 1
        if 0 <= rank < self.budget:
            self._ranks[row, rank] += 1

    def probability(self, after_hit: bool, spec_len: int) -> list[float]:
        """P(k) for k = 0..spec_len."""
        origin = int(after_hit)
        prior = self.PRIOR_TRIALS * ACCEPTANCE
        acceptance = (self._accepted[origin] + prior) / (self._tried[origin] + self.PRIOR_TRIALS)
        reached = np.concatenate([[1.0], np.cumprod(acceptance[:spec_len])])
        rejected = np.append(1 - acceptance[:spec_len], 1.0)
        return (reached * rejected).tolist()  # type: ignore[no-any-return]

    def gains(self, spec_len: int) -> list[list[float]]:
        """The increments of h_k for k = 0..spec_len: [budget] numbers for each k, not increasing."""
        prior = power_law_gains(self.budget)
        of_kind = {}
        for whole, rows in ((False, slice(0, self.lookahead)), (True, slice(self.lookahead, None))):
            ranks, outcomes = self._ranks[rows].sum(0), self._outcomes[rows].sum()
            of_kind[whole] = (ranks + self.PRIOR_RANKS * prior) / (outcomes + self.PRIOR_RANKS)
        curves = []
        for k in range(spec_len + 1):
            row = self.lookahead if k == spec_len else k
            gains = (self._ranks[row] + self.KIND_RANKS * of_kind[k == spec_len]) / (self._outcomes[row] + self.KIND_RANKS)
            curves.append(_not_increasing(gains).tolist())
        return curves

    def tables(self) -> Tensor:
        """The table for `ops.fork`: the best one for the outcomes so far."""
        rows = [
            [_padded(best(self.probability(after_hit, length), self.gains(length), self.budget), self.lookahead)
             for length in range(self.lookahead + 1)]
            for after_hit in (False, True)
        ]  # fmt: skip
        return torch.tensor(rows, dtype=torch.int32)


def tables(fan_out: str | Sequence[int], lookahead: int, budget: int) -> Tensor:
    """The table for `ops.fork`: [2, K+1, K+1] int32 by (after a miss or a hit, spec_len, k). Each row sums to the budget.

    fan_out: "geometric", "uniform", "measured" (the table before any outcome), or one number for each accepted count. For a
    shorter speculation these numbers stay, and its last accepted count gets the rest of the budget.
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
