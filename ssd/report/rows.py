"""The rows behind each chart and table of the page, computed from results of `ssd bench`."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from ssd.bench.figures import ALL
from ssd.bench.results import BenchResult
from ssd.bench.statistics import hit_rate, hits_per_k, interval, middle, rounds_s, tokens_per_round
from ssd.decoding.speed_model import SsdModel
from ssd.decoding.stats import Stats
from ssd.errors import SsdError
from ssd.simulate.outcomes import acceptance_by_position

Row = dict[str, Any]
SHOWN_ROUNDS = 5  # in a timeline
SHOWN_GUESSES = 64  # in a hit curve, and for its fit
ABLATED = {
    "lookahead": "lookahead K",
    "budget": "branches B",
    "fan_out": "fan-out",
    "saguaro_c": "Saguaro C",
    "saguaro_f": "Saguaro F",
    "fallback": "fallback",
    "weights": "weights",
    "max_batch": "batch",
    "temperature": "temperature",
    "draft": "draft",
}  # options whose effect gets a chart of its own where it was swept


@dataclass(frozen=True)
class Variant:
    """One variant of one result. label: its name on the page, with the file's if there are several files."""

    label: str
    name: str
    result: BenchResult

    @property
    def options(self) -> dict[str, Any]:
        return self.result.variants[self.name]

    @property
    def mode(self) -> str:
        return str(self.options["mode"])

    def stats(self, set: str | None = None) -> list[Stats]:
        return self.result.stats(self.name, set=set)

    def figures(self, set: str) -> Row | None:
        """None where it measured nothing on this set."""
        of_set = (each for each in self.result.figures if (each["set"], each["variant"]) == (set, self.name))
        return next(of_set, None)


def variants_of(results: Sequence[BenchResult]) -> list[Variant]:
    """All variants of results that can be compared. Raises SsdError for results of two machines, or of other prompts."""
    first = results[0]
    for other in results[1:]:
        for name in ("device", "cores", "instruction_set"):
            if first.machine[name] != other.machine[name]:
                raise SsdError(
                    f"{first.name} and {other.name} come from machines that differ in {name} ({first.machine[name]} and "
                    f"{other.machine[name]}), so they cannot be compared; make a page of each."
                )
        for name in first.sets.keys() & other.sets.keys():
            if first.sets[name] != other.sets[name]:
                raise SsdError(
                    f"{first.name} and {other.name} have different prompts in the set {name!r}; make a page of each."
                )
    several = len(results) > 1
    return [
        Variant(f"{result.name}: {name}" if several else name, name, result) for result in results for name in result.variants
    ]


def sets_of(variants: Sequence[Variant]) -> list[str]:
    """The sets, then all together if there are several."""
    return sorted(dict.fromkeys(each["set"] for v in variants for each in v.result.figures), key=lambda name: name == ALL)


def broadest(variants: Sequence[Variant]) -> str:
    """All sets together, or the only one."""
    return sets_of(variants)[-1]


def speeds(variants: Sequence[Variant]) -> list[Row]:
    """Tokens/s by set and variant, with the interval and the floor; then the peers."""
    rows: list[Row] = []
    for name in sets_of(variants):
        for variant in variants:
            if (found := variant.figures(name)) is None:
                continue
            is_first = variant.name == next(iter(variant.result.variants))
            rate, over = found["decode_tokens_per_s"], None if is_first else found["over_first"]
            rows.append(
                {
                    "set": name,
                    "variant": variant.label,
                    "tokens_per_s": rate["median"],
                    "pooled": rate["pooled"],
                    "mean": fmean(rate["mean_95"]),
                    "low": rate["mean_95"][0],
                    "high": rate["mean_95"][1],
                    "floor": found["floor_tokens_per_s"],
                    "over_first": over and over["mean"],
                    "over_first_95": over and over["interval"],
                    "p": over and over["p"],
                    "tokens_per_round": found["tokens_per_round"],
                    "hit_rate": found["hit_rate"],
                    "first_token_s": found["time_to_first_token_s"],
                    "identical": found["identical"],
                }
            )
        for result in dict.fromkeys(variant.result.name for variant in variants):
            peers = next(v.result.peer_figures for v in variants if v.result.name == result)
            for each in peers:
                if each["set"] == name:
                    low, high = interval(each["decode_tokens_per_s"])
                    rate = middle(each["decode_tokens_per_s"])
                    mean = fmean((low, high))
                    rows.append(
                        {"set": name, "variant": each["peer"], "tokens_per_s": rate, "mean": mean, "low": low, "high": high}
                    )
    return rows


def round_parts(variants: Sequence[Variant]) -> list[Row]:
    """What a mean round of each variant consists of, in ms, over all sets.

    verify, draft and fallback are medians over rounds; `rest` is what they leave of the mean round: look-ups, reports, and the
    host. alone_ms: T_v in mode "sd" with the same options, where the draft rests.
    """
    rows = []
    for variant in variants:
        stats = [s for s in variant.stats() if s.decode_tokens_per_s and s.rounds]
        if not stats:
            continue
        round_ms = 1e3 * sum(map(rounds_s, stats)) / sum(s.rounds for s in stats)
        verify, draft, hidden, fallback = (
            middle(getattr(s, name) for s in stats)
            for name in ("t_verify_ms", "t_draft_ms", "hidden_draft_ms", "t_fallback_ms")
        )
        unused = sum(s.branches_unused for s in stats)
        missed = 1 - hit_rate(stats) ** variant.options["max_batch"] if fallback else 0.0
        exposed = max(0.0, (draft or 0.0) - (hidden or 0.0))
        parts = {"verify": verify or 0.0, "draft, not hidden": exposed, "fallback": missed * (fallback or 0.0)}
        twin = _twin(variant, variants) if variant.mode == "ssd" else None
        rows.append(
            {
                "variant": variant.label,
                "round_ms": round_ms,
                "parts": {**parts, "rest": max(0.0, round_ms - sum(parts.values()))},
                "verify_ms": verify,
                "alone_ms": middle(s.t_verify_ms for s in twin.stats()) if twin else None,
                "draft_ms": draft,
                "hidden_ms": hidden,
                "fallback_ms": fallback,
                "branches_unused": unused / sum(s.rounds for s in stats) if variant.mode == "ssd" else None,
            }
        )
    return rows


def timeline(variant: Variant) -> list[Row]:
    """The phases of a few rounds after the first ones: lane, phase, start and end in ms. Empty if none were kept.

    A phase that has others inside gives way to them. All branch steps have one name.
    """
    spans = next((turn.spans_ms for turn in variant.result.turns if turn.variant == variant.name and turn.spans_ms), ())
    starts = [start for _, name, start, _ in spans if name == "verify"]
    if len(starts) < 2:
        return []
    first = min(2, len(starts) - 2)
    begin, end = starts[first], starts[min(first + SHOWN_ROUNDS, len(starts) - 1)]
    shown = [span for span in spans if span[3] > begin and span[2] < end]
    return [
        {"lane": lane, "phase": re.sub(r" \d+$", "", name), "start": start - begin, "end": stop - begin}
        for lane, name, start, stop in shown
        if not any(
            other_lane == lane and start <= other_start and other_stop <= stop and (start, stop) != (other_start, other_stop)
            for other_lane, _, other_start, other_stop in shown
        )
    ]


def accepted_positions(variants: Sequence[Variant]) -> list[Row]:
    """The share of drafted tokens at each position that are accepted, given that those before them were."""
    return [
        {"variant": variant.label, "position": position + 1, "accepted": share}
        for variant in variants
        if variant.mode != "ar"
        for position, share in enumerate(acceptance_by_position(variant.stats()))
    ]


def hits_by_accepted(variants: Sequence[Variant]) -> list[Row]:
    return [
        {"variant": variant.label, "accepted": k, "hit_rate": hits / look_ups, "look_ups": look_ups}
        for variant in variants
        for k, (hits, look_ups) in sorted(hits_per_k(variant.stats()).items())
        if look_ups
    ]


@dataclass(frozen=True)
class HitCurve:
    """h(F), the share of next tokens among the draft's F likeliest guesses. The law 1 − h(F) = first_miss · F^(−decay) is a
    fit by least squares of the logarithms (arXiv 2603.03251, section 4.1)."""

    label: str
    shares: Sequence[float]
    first_miss: float
    decay: float


def hit_curves(variants: Sequence[Variant]) -> Iterator[HitCurve]:
    """Of each variant with look-ups. A curve of fewer than three guesses has no fit, and is left out."""
    for variant in variants:
        ranks: Counter[int] = Counter()
        for stats in variant.stats():
            ranks.update(stats.rank_counts)
        total = ranks.total()
        guesses = min(SHOWN_GUESSES, max(ranks, default=-1) + 1)
        known = [n / total for n in accumulate(ranks[rank] for rank in range(guesses))]
        points = [(math.log(f), math.log(1 - h)) for f, h in enumerate(known, 1) if h < 1]
        if len(points) < 3:
            continue
        x_mean, y_mean = fmean(x for x, _ in points), fmean(y for _, y in points)
        slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
        yield HitCurve(variant.label, known, math.exp(y_mean - slope * x_mean), -slope)


@dataclass(frozen=True)
class Gain:
    """What hits bring.

    points: of each prompt, (hit rate, speed over mode "sd" with the same options). line: the same by the speed model, from the
    medians of times. break_even: the hit rate from which on "ssd" is as fast; None if no rate is enough.
    """

    label: str
    over: str
    points: Sequence[tuple[float, float]]
    line: Sequence[tuple[float, float]]
    break_even: float | None


def gains(variants: Sequence[Variant]) -> Iterator[Gain]:
    """Of each variant in mode "ssd" that has its twin in mode "sd"."""
    for variant in variants:
        twin = _twin(variant, variants) if variant.mode == "ssd" else None
        if twin is None:
            continue
        ours, theirs = _prompts(variant), _prompts(twin)
        points = [
            (hit_rate(stats), fmean(_rate(s) for s in stats) / fmean(_rate(s) for s in theirs[prompt]))
            for prompt, stats in ours.items()
            if prompt in theirs
        ]
        speed_up = _speed_up(variant, twin)
        line = [(rate / 50, speed_up(rate / 50)) for rate in range(51)]
        above = [rate for rate, ratio in line if ratio >= 1]
        yield Gain(variant.label, twin.label, points, line, above[0] if above else None)


def _speed_up(variant: Variant, twin: Variant) -> Callable[[float], float]:
    """The speed of a variant in mode "ssd" over its twin's, by the speed model: a function of the hit rate."""
    (parts,), (others,) = round_parts([variant]), round_parts([twin])
    tokens, fallback = tokens_per_round(variant.stats()), parts["fallback_ms"] or 0.0
    plain = parts["round_ms"] - parts["parts"]["fallback"]
    speculative = tokens_per_round(twin.stats()) / others["round_ms"]
    batch = variant.options["max_batch"]
    return lambda rate: SsdModel(rate, tokens, tokens, plain, 0.0, fallback, batch).tokens_per_s() / float(speculative)


def ablations(variants: Sequence[Variant]) -> dict[str, list[Row]]:
    """By option that was swept: the speed with each of its values, the other options being equal."""
    found: dict[str, list[Row]] = {}
    shown = broadest(variants)
    for option, title in ABLATED.items():
        groups: dict[tuple[Any, ...], list[Variant]] = defaultdict(list)
        for variant in variants:
            if variant.mode != "ar":
                rest = {name: value for name, value in variant.options.items() if name != option}
                groups[variant.result.name, repr(sorted(rest.items(), key=lambda item: item[0]))].append(variant)
        for group in groups.values():
            if len({str(v.options[option]) for v in group}) < 2:
                continue
            for variant in group:
                if (figures := variant.figures(shown)) is None:
                    continue
                low, high = figures["decode_tokens_per_s"]["mean_95"]
                found.setdefault(title, []).append(
                    {
                        "group": _without(group, option, variants),
                        "value": variant.options[option],
                        "tokens_per_s": fmean((low, high)),
                        "low": low,
                        "high": high,
                    }
                )
    return found


def _without(group: Sequence[Variant], option: str, variants: Sequence[Variant]) -> str:
    """What tells a group from others: its mode, and the options that differ among all variants besides this one."""
    own = group[0].options
    differ = [
        name
        for name in ABLATED
        if name != option and len({str(v.options[name]) for v in variants if v.mode == group[0].mode}) > 1
    ]
    return ", ".join([group[0].mode, *(f"{ABLATED[name]} {own[name]}" for name in differ)])


def _twin(variant: Variant, variants: Sequence[Variant]) -> Variant | None:
    """The variant in mode "sd" with the same models, lookahead and sampling."""
    same = ("target", "draft", "lookahead", "temperature", "weights", "dtype", "threads", "max_batch", "saguaro_c", "saguaro_f")
    for other in variants:
        alike = all(other.options[name] == variant.options[name] for name in same)
        if other.mode == "sd" and other.options["tree"] is None and other.result is variant.result and alike:
            return other
    return None


def _prompts(variant: Variant) -> dict[tuple[str, int], list[Stats]]:
    """The statistics of all runs by (set, number of the prompt)."""
    found: dict[tuple[str, int], list[Stats]] = defaultdict(list)
    for turn in variant.result.turns:
        if turn.variant == variant.name:
            for prompt, stats in enumerate(turn.stats):
                if stats.decode_tokens_per_s:
                    found[turn.set, prompt].append(stats)
    return found


def _rate(stats: Stats) -> float:
    return stats.decode_tokens_per_s or 0.0
