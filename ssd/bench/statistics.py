"""Medians, intervals, paired comparisons, and figures pooled over sequences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from ssd.decoding.stats import Stats


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def interval(values: Sequence[float]) -> list[float]:
    """The 95 % confidence interval of the mean: Student's t for up to 30 values, the normal distribution beyond."""
    quantiles = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]
    n = len(values)
    if n < 2:
        return [values[0], values[0]]
    t = quantiles[n - 2] if n - 2 < len(quantiles) else 2.04 if n < 31 else 1.96
    half = t * stdev(values) / math.sqrt(n)
    return [mean(values) - half, mean(values) + half]


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of paired ratios, with a 95 % interval. p: of a paired t-test against 1; None for one pair."""

    mean: float
    interval: tuple[float, float]
    p: float | None


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Ratio:
    """values over base, pair by pair."""
    logs = [math.log(value / other) for value, other in zip(values, base, strict=True)]
    low, high = interval(logs)
    p = None
    if len(logs) > 1:
        error = stdev(logs) / math.sqrt(len(logs))
        p = two_sided_p(abs(mean(logs)) / error, len(logs) - 1) if error else float(mean(logs) == 0)
    return Ratio(math.exp(mean(logs)), (math.exp(low), math.exp(high)), p)


def two_sided_p(t: float, degrees: int) -> float:
    """The probability that Student's t with these degrees of freedom is at least this far from 0."""
    # With t = sqrt(degrees) * tan(angle), the density is a power of a cosine, and Simpson's rule sums it.
    steps, end = 2000, math.atan(t / math.sqrt(degrees))
    heights = [math.cos(end * i / steps) ** (degrees - 1) for i in range(steps + 1)]
    area = end / steps / 3 * (heights[0] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - 2 * scale * area)


def tokens_per_round(stats: Sequence[Stats]) -> float:
    """The mean acceptance length, pooled: tokens that rounds committed over rounds, of all sequences; 0 without rounds."""
    committed = sum(s.mean_acceptance_length * s.rounds for s in stats if s.mean_acceptance_length is not None)
    return committed / max(1, sum(s.rounds for s in stats))


def rounds_s(stats: Stats) -> float:
    """The seconds that a sequence's rounds took; 0 if it had none."""
    return (stats.mean_acceptance_length or 0.0) * stats.rounds / (stats.decode_tokens_per_s or math.inf)


def pooled_rate(stats: Sequence[Stats]) -> float:
    """Tokens that rounds committed over the seconds that they took, of all sequences; 0 without rounds."""
    seconds = sum(map(rounds_s, stats))
    return tokens_per_round(stats) * sum(s.rounds for s in stats) / seconds if seconds else 0.0


def total_accepted(stats: Sequence[Stats]) -> float:
    """Draft tokens accepted, in all rounds of all sequences."""
    return sum(s.accepted_per_round * s.rounds for s in stats)


def hits_per_k(stats: Sequence[Stats]) -> dict[int, list[int]]:
    """[hits, look-ups] of all sequences together, by accepted count."""
    per_k: dict[int, list[int]] = {}
    for s in stats:
        for k, (hits, look_ups) in s.hits_per_k.items():
            entry = per_k.setdefault(k, [0, 0])
            entry[0] += hits
            entry[1] += look_ups
    return per_k


def total_hits(stats: Sequence[Stats]) -> int:
    return sum(hits for hits, _ in hits_per_k(stats).values())


def hit_rate(stats: Sequence[Stats]) -> float:
    """Pooled: all hits over all look-ups; 0 where nothing was looked up."""
    return total_hits(stats) / max(1, sum(look_ups for _, look_ups in hits_per_k(stats).values()))
