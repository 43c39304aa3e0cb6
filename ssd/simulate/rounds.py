"""Rounds of many decodes at once, in NumPy. Their times are given; their outcomes are drawn.

A round of mode "ssd" takes the longer one of the verification and the drafting (the draft's own K/V, then K branch steps), both
beside each other, then the exchange between the roles. If any sequence of the batch missed, all wait for its fallback.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ssd.decoding.speed_model import SsdModel
from ssd.simulate.outcomes import Outcomes, crossing

Fallback = Literal["neural", "none"]
REPLICAS = 1000  # decodes that run at once
WARM_UP = 20  # rounds before the first that counts: the first look-up of a decode has no guesses


@dataclass(frozen=True)
class Times:
    """In milliseconds. verify: a target pass over a speculation, beside the draft's work in "ssd". token: a target pass of one
    row, for mode "ar". draft: a draft pass. branch: a pass of all branches. exchange: from the end of a verification to
    the start of the next one, without a fallback; with a link between two machines, its latency both ways."""

    verify: float
    token: float
    draft: float
    branch: float
    exchange: float = 0.0


@dataclass(frozen=True)
class Setting:
    """A row of the table. lookahead is 0 in mode "ar", and budget in "ar" and "sd"."""

    mode: Literal["ar", "sd", "ssd"]
    lookahead: int = 0
    budget: int = 0
    batch: int = 1
    fallback: Fallback = "neural"


def grid(lookaheads: Sequence[int], budgets: Sequence[int], batch: int, fallback: Fallback = "neural") -> list[Setting]:
    """Mode "ar", then "sd" with each lookahead, then "ssd" with each lookahead and budget."""
    settings = [Setting("ar", batch=batch), *(Setting("sd", k, batch=batch) for k in lookaheads)]
    return settings + [Setting("ssd", k, b, batch, fallback) for k in lookaheads for b in budgets]


@dataclass(frozen=True)
class Simulated:
    """tokens_per_s: of one sequence, with the half width of its 95 % interval. hit_rate: over all look-ups. break_even: the hit
    rate from which on mode "ssd" is at least as fast as "sd" with the same lookahead; None if no rate is enough. The last two
    are None in the other modes."""

    setting: Setting
    tokens_per_s: float
    half_width: float
    tokens_per_round: float
    round_ms: float
    hit_rate: float | None = None
    break_even: float | None = None

    @property
    def name(self) -> str:
        of = self.setting
        return of.mode + (f", K = {of.lookahead}" if of.lookahead else "") + (f", B = {of.budget}" if of.budget else "")


def round_ms(setting: Setting, times: Times) -> float:
    """The milliseconds of a round without a fallback."""
    if setting.mode == "ar":
        return times.token + times.exchange
    if setting.mode == "sd":
        return times.verify + setting.lookahead * times.draft + times.exchange
    return max(times.verify, times.draft + setting.lookahead * times.branch) + times.exchange


def simulate(
    setting: Setting, outcomes: Outcomes, times: Times, rounds: int, seed: int, rival: Times | None = None
) -> Simulated:
    """Run REPLICAS decodes at once. rounds: of all of them together; each runs at least one that counts. rival: the times of
    mode "sd", with which "ssd" breaks even; None if they are the same."""
    draw = np.random.default_rng(seed)
    sequences = (REPLICAS, setting.batch)
    looks_up = setting.mode == "ssd"
    after_miss = setting.lookahead if not looks_up or setting.fallback == "neural" else 0
    lengths = (after_miss, setting.lookahead)  # of a speculation after a miss, and after a hit
    limits = np.zeros((2, setting.lookahead + 1))  # P(at most k accepted) by what came before
    chance = np.zeros((2, setting.lookahead + 1))  # of a hit, after k accepted
    for i, length in enumerate(lengths):
        limits[i, : length + 1] = np.cumsum(outcomes.accepted(length))
        limits[i, length:] = np.inf  # not 1 − rounding
        if looks_up:
            chance[i, : length + 1] = outcomes.hits(length, setting.budget)

    plain = round_ms(setting, times)
    fallback = after_miss * times.draft if looks_up else 0.0

    counted = max(1, math.ceil(rounds / REPLICAS))
    hit = np.zeros(sequences, dtype=bool)
    tokens, spent, hits = np.zeros(REPLICAS), np.zeros(REPLICAS), 0
    for turn in range(WARM_UP + counted):
        origin = hit.astype(np.intp)
        accepted = np.sum(draw.random(sequences)[..., None] >= limits[origin], axis=-1)
        if looks_up:
            hit = draw.random(sequences) < chance[origin, accepted]
        if turn < WARM_UP:
            continue
        tokens += accepted.mean(1) + 1
        spent += plain + fallback * ~hit.all(1)
        hits += int(hit.sum())
    rates = tokens / spent * 1e3
    hit_rate = hits / (counted * hit.size) if looks_up else None
    return Simulated(
        setting,
        tokens_per_s=float(tokens.sum() / spent.sum() * 1e3),
        half_width=float(1.96 * rates.std(ddof=1) / math.sqrt(REPLICAS)),
        tokens_per_round=float(tokens.mean() / counted),
        round_ms=float(spent.mean() / counted),
        hit_rate=hit_rate,
        break_even=_break_even(setting, outcomes, times, rival or times, fallback, lengths) if looks_up else None,
    )


def _break_even(
    setting: Setting, outcomes: Outcomes, times: Times, rival: Times, fallback: float, lengths: tuple[int, int]
) -> float | None:
    """By bisection of the speed model, which says what a hit rate is worth."""
    after_miss, after_hit = (float(outcomes.accepted(n) @ np.arange(1, n + 2)) for n in lengths)
    speculative = after_hit / round_ms(replace(setting, mode="sd"), rival)
    plain = round_ms(setting, times)

    def loses(hit_rate: float) -> bool:
        model = SsdModel(hit_rate, after_hit, after_miss, plain, 0.0, fallback, setting.batch)
        return model.tokens_per_s() < speculative

    if loses(1.0):
        return None
    return crossing(loses)
