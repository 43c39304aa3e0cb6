"""The figures of a benchmark's turns. Times are medians of the sequences' medians."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, mean, median
from typing import Any

from ssd.bench.journal import Measurement
from ssd.bench.statistics import hits_per_k, interval, middle, paired_ratio, pooled_rate
from ssd.decoding.stats import Stats

ALL = "all sets"


def of_sequences(stats: Sequence[Stats], floor_s: float) -> dict[str, Any]:
    """The figures of one variant's sequences. floor_s: the floor of one target pass, its weights' bytes over the bandwidth."""

    def median_of(name: str) -> float | None:
        return middle(getattr(s, name) for s in stats)

    rates = [s.decode_tokens_per_s for s in stats if s.decode_tokens_per_s is not None]
    tokens_per_round = mean(s.mean_acceptance_length for s in stats if s.mean_acceptance_length is not None)
    verify_ms = median_of("t_verify_ms") or math.nan
    return {
        "decode_tokens_per_s": {
            "median": median(rates),
            "mean_95": interval(rates),
            "min": min(rates),
            "max": max(rates),
            "pooled": pooled_rate(stats),
        },
        "time_to_first_token_s": median_of("time_to_first_token_s"),
        "tokens_per_round": tokens_per_round,
        "acceptance_rate": median_of("acceptance_rate"),
        "hit_rate": median_of("hit_rate"),
        "hits_per_k": hits_per_k(stats),
        "t_verify_ms": verify_ms,
        "t_draft_ms": median_of("t_draft_ms"),
        "t_fallback_ms": median_of("t_fallback_ms"),
        "hidden_draft_ms": median_of("hidden_draft_ms"),
        "branches_unused": sum(s.branches_unused for s in stats),
        "verify_floor_ms": floor_s * 1e3,
        "verify_fraction_of_floor": floor_s * 1e3 / verify_ms,
        "floor_tokens_per_s": tokens_per_round / floor_s,
    }


def of_turns(turns: Sequence[Measurement], variants: Sequence[str], floors_s: dict[str, float]) -> list[dict[str, Any]]:
    """The figures of each set and variant, in this order. floors_s: of one target pass, by variant.

    Several sets are followed by all together. A variant is compared with the first one prompt by prompt, each prompt with its
    mean rate over the runs. `identical` says whether it gave the first one's tokens; None where they are drawn.
    """
    found = []
    sets = list(dict.fromkeys(turn["set"] for turn in turns))
    for name in [*sets, ALL] if len(sets) > 1 else sets:
        of_set = [turn for turn in turns if name in (turn["set"], ALL)]
        for variant in variants:
            own, first = ([turn for turn in of_set if turn["variant"] == each] for each in (variant, variants[0]))
            stats = [stats_from_json(sequence["stats"]) for turn in own for sequence in turn["sequences"]]
            if not any(s.decode_tokens_per_s for s in stats):
                continue  # no sequence had a second token
            figures = of_sequences(stats, floors_s[variant])
            tokens = [sum(sequence["tokens"] for sequence in turn["sequences"]) for turn in own]
            figures["tokens_per_s_of_all"] = median(n / turn["seconds"] for n, turn in zip(tokens, own, strict=True))
            base, ours = _rates(first), _rates(own)
            both = [prompt for prompt in ours if prompt in base]
            figures["over_first"] = asdict(paired_ratio([ours[p] for p in both], [base[p] for p in both])) if both else None
            greedy = all(turn["greedy"] for turn in (*own, *first))
            figures["identical"] = _tokens(own) == _tokens(first) if greedy else None
            found.append({"set": name, "variant": variant, **figures})
    return found


def of_peers(turns: Sequence[Measurement], sets: Sequence[str], peers: Sequence[str]) -> list[dict[str, Any]]:
    """The rates that the peers reported, by set."""
    return [
        {"set": name, "peer": peer, "decode_tokens_per_s": rates}
        for name in sets
        for peer in peers
        if (
            rates := [
                turn["answer"]["decode_tokens_per_s_median"]
                for turn in turns
                if turn.get("peer") == peer and turn["set"] == name
            ]
        )
    ]


def _rates(turns: Sequence[Measurement]) -> dict[tuple[str, int], float]:
    """The mean decode rate of each prompt, by its set and number, that has one in every run."""
    rates: dict[tuple[str, int], list[float | None]] = defaultdict(list)
    for turn in turns:
        for prompt, sequence in enumerate(turn["sequences"]):
            rates[turn["set"], prompt].append(sequence["stats"]["decode_tokens_per_s"])
    return {
        prompt: fmean(known)
        for prompt, each in rates.items()
        if all(known := [r for r in each if r]) and len(known) == len(each)
    }


def _tokens(turns: Sequence[Measurement]) -> list[list[str]]:
    return [[sequence["token_ids_sha256"] for sequence in turn["sequences"]] for turn in turns]


def stats_from_json(values: dict[str, Any]) -> Stats:
    """The keys of JSON are texts; those of Stats are numbers."""
    counted = ("hits_per_k", "rank_counts", "rank_counts_whole", "proposed_counts")
    return Stats(**(values | {name: {int(k): n for k, n in values[name].items()} for name in counted}))
