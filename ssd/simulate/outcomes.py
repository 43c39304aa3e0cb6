"""Outcomes of a round: how many drafted tokens the target accepts, and whether the next token is among the guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ssd.decoding.fanout import ACCEPTANCE, DECAY, FIRST_MISS, best
from ssd.decoding.stats import Stats
from ssd.errors import SsdError


@dataclass(frozen=True)
class Outcomes:
    """acceptance: the chance that the target accepts the drafted token at each position, given that it accepted those before
    it; later positions have the last one's. after_rejection[F - 1], after_whole[F - 1]: the chance that the next token is among
    F guesses, after a rejected token, and after a speculation that was accepted whole."""

    acceptance: tuple[float, ...]
    after_rejection: tuple[float, ...]
    after_whole: tuple[float, ...]

    @classmethod
    def assumed(
        cls, guesses: int, acceptance: float = ACCEPTANCE, first_miss: float = FIRST_MISS, decay: float = DECAY
    ) -> Outcomes:
        """One acceptance at every position, and 1 − h(F) = first_miss · F^(−decay) for up to `guesses` guesses."""
        curve = tuple(1 - first_miss * f**-decay for f in range(1, guesses + 1))
        return cls((acceptance,), curve, curve)

    @classmethod
    def recorded(cls, stats: Sequence[Stats]) -> Outcomes:
        """From decodes in mode "ssd". Raises SsdError if nothing was drafted or looked up."""
        rejected, whole = Counter[int](), Counter[int]()
        for each in stats:
            rejected.update(each.rank_counts)
            rejected.subtract(each.rank_counts_whole)
            whole.update(each.rank_counts_whole)
        accepted = acceptance_by_position(stats)
        if not accepted or not rejected.total() + whole.total():
            raise SsdError("the result has no decode in mode 'ssd' with outcomes; measure one, or give --acceptance.")
        # A kind of outcome that never came has the other one's curve.
        return cls(accepted, _curve(rejected) or _curve(whole), _curve(whole) or _curve(rejected))

    def accepted(self, length: int) -> np.ndarray:
        """P(k) for k = 0..length accepted tokens of a speculation: [length + 1] float64."""
        chance = [self.acceptance[min(i, len(self.acceptance) - 1)] for i in range(length)]
        probability: np.ndarray = np.cumprod([1.0, *chance]) * np.array([*(1 - c for c in chance), 1.0])
        return probability

    def hits(self, length: int, budget: int) -> np.ndarray:
        """The chance of a hit after k = 0..length accepted tokens, for the best fan-out of the budget: [length + 1] float64."""
        curves = np.array(
            [
                [0.0, *(curve[min(f, len(curve)) - 1] for f in range(1, budget + 1))]
                for curve in [self.after_rejection] * length + [self.after_whole]
            ]
        )
        counts = best(self.accepted(length).tolist(), np.diff(curves).tolist(), budget)
        hits: np.ndarray = curves[np.arange(length + 1), counts]
        return hits


def crossing(below: Callable[[float], bool], steps: int = 30) -> float:
    """The number from 0 to 1 from which on `below` is false, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def acceptance_by_position(stats: Sequence[Stats]) -> tuple[float, ...]:
    """The share of drafted tokens at each position that were accepted, given that those before them were; nothing without
    drafts."""
    accepted, proposed = Counter[int](), Counter[int]()
    for each in stats:
        accepted.update(dict(enumerate(each.accepted_at)))
        proposed.update(each.proposed_counts)
    longest = max((length for length, rounds in proposed.items() if rounds), default=0)
    longer = [sum(rounds for length, rounds in proposed.items() if length >= n) for n in range(longest + 1)]  # than n − 1
    found, accepted_before = [], longer[0]
    for position in range(longest):
        reached = accepted_before * longer[position + 1] / longer[position]  # and with a token at this position
        found.append(accepted[position] / reached if reached else 0.0)
        accepted_before = accepted[position]
    return tuple(found)


def _curve(ranks: Counter[int]) -> tuple[float, ...]:
    """The share of ranks below 1, 2, ..; nothing if there are none."""
    total = ranks.total()
    return tuple(n / total for n in accumulate(ranks[r] for r in range(max(ranks) + 1))) if total else ()
