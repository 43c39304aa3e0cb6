"""Hit rates of every fan-out on the same decode, and the trade of Saguaro sampling: arXiv 2603.03251, sections 4.1 and 4.2.

    python profiling/hit_rates.py --prompts humaneval.jsonl:prompt --prompts gsm8k.jsonl:question --limit 32

With the neural fallback a hit and a miss lead to the same speculation, so the outcomes of a decode do not depend on the
fan-out. One decode therefore records two numbers for every look-up: the accepted count, and the rank of the next token among
the draft's guesses. Every fan-out and budget is replayed on that record. The engine's own fan-out is replayed too, and must
give the engine's own hits. Intervals are 95 % confidence intervals of the mean over prompts, paired. Saguaro sampling changes
the decode itself, so each C has a decode of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from common.options import add_flags
from common.results import HIT_RATES, settings_of, write_result
from common.spans import recorded_decode
from common.workload import PromptFile

from ssd import Completion, Engine, SamplingParams
from ssd.bench import machine
from ssd.bench.statistics import interval, tokens_per_round, total_accepted, total_hits
from ssd.decoding.cache import SpeculationCache
from ssd.decoding.fanout import Measured, tables

FAN_OUTS = ("measured", "geometric", "uniform")


@dataclass
class LookUp:
    """One look-up in the speculation cache.

    request: index of its prompt. k: accepted count. rank: rank of the next token among the draft's guesses.
    """

    request: int
    spec_len: int
    k: int
    rank: int


@dataclass
class Record:
    """A decode's look-ups, round by round."""

    rounds: list[list[LookUp]]
    completions: list[Completion] = field(repr=False)


def record(engine: Engine, prompts: Sequence[str], params: SamplingParams) -> Record:
    spans, completions = recorded_decode(engine, prompts, params)
    in_slot: dict[int, int] = {}
    rounds, admitted = [], 0
    for span in spans:
        if span.name == "prefill" and span.lane == "target":  # requests are admitted in order
            in_slot[span.details["slot"]] = admitted
            admitted += 1
        if span.name == "look up":
            seen = enumerate(span.details["seen"])
            rounds.append([LookUp(in_slot[slot], length, k, rank) for slot, (_, length, k, rank) in seen if k >= 0])
    assert admitted == len(prompts)
    return Record(rounds, completions)


def replay(recorded: Record, fan_out: str | Sequence[int], lookahead: int, budget: int) -> list[tuple[int, int]]:
    """(hits, look-ups) of every request, as if this fan-out had divided the budget."""
    measured = Measured(lookahead, budget) if fan_out == "measured" else None
    newest = tables(fan_out, lookahead, budget).tolist()
    in_use = newest  # a look-up uses guesses that were chosen by the tables of two rounds before
    was_hit = dict.fromkeys(range(len(recorded.completions)), False)
    counts = [[0, 0] for _ in recorded.completions]
    for round_ in recorded.rounds:
        seen = []
        for look_up in round_:
            after_hit = was_hit[look_up.request]
            hit = look_up.rank < in_use[after_hit][look_up.spec_len][look_up.k]
            counts[look_up.request][0] += hit
            counts[look_up.request][1] += 1
            was_hit[look_up.request] = hit
            seen.append((after_hit, look_up))
        in_use = newest
        for after_hit, look_up in seen if measured is not None else ():
            measured.observe(after_hit, look_up.spec_len, look_up.k, look_up.rank)
            if measured.observations % SpeculationCache.REFRESH == 0:
                newest = measured.tables().tolist()
    return [(hits, look_ups) for hits, look_ups in counts]


def rates(counts: Sequence[tuple[int, int]]) -> list[float]:
    return [hits / look_ups for hits, look_ups in counts if look_ups]


def compare(counts: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Pooled hit rates, and the hit rate of "measured" minus the hit rate of each other fan-out, prompt by prompt."""
    by_prompt = {name: rates(each) for name, each in counts.items()}
    return {
        "hit_rate": {n: sum(h for h, _ in each) / max(1, sum(t for _, t in each)) for n, each in counts.items()},
        "look_ups": sum(t for _, t in counts["measured"]),
        "measured_less": {
            other: {"mean": mean(differences), "mean_95": interval(differences)}
            for other in ("geometric", "uniform")
            if (differences := [a - b for a, b in zip(by_prompt["measured"], by_prompt[other], strict=True)])
        },
    }


def acceptance(recorded: Record) -> dict[str, float]:
    """Pooled tokens per round, and the accepted share of all proposed tokens."""
    stats = [c.stats for c in recorded.completions]
    proposed = sum(length * n for s in stats for length, n in s.proposed_counts.items())
    return {"tokens_per_round": tokens_per_round(stats), "acceptance_rate": total_accepted(stats) / proposed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", action="append", required=True, metavar="FILE.jsonl:FIELD", help="a set of prompts; repeatable"
    )
    parser.add_argument("--limit", type=int, default=32, help="prompts taken from each file")
    add_flags(parser, "target", "lookahead", "threads", draft="self:25", max_new_tokens=128, max_batch=8)
    parser.add_argument("--budgets", default="8,16", help="values of B, separated by commas")
    parser.add_argument("--temperatures", default="0,1", help="temperatures, separated by commas")
    parser.add_argument(
        "--saguaro-c", default="1,0.7,0.5,0.3", help="values of C for temperatures above 0, separated by commas"
    )
    parser.add_argument("--name", default=HIT_RATES.what, help="name of the result file")
    args = parser.parse_args()
    budgets = [int(b) for b in args.budgets.split(",")]
    files = [PromptFile.parse(each) for each in args.prompts]
    sets = {file.path.stem: file.prompts(args.limit) for file in files}

    cases = []
    for temperature in map(float, args.temperatures.split(",")):
        for c in map(float, args.saguaro_c.split(",")) if temperature > 0 else (1.0,):
            # F follows from the budget. It matters for a C below 1 only, which therefore needs a decode for each budget.
            for group in [budgets] if c == 1 else [[b] for b in budgets]:
                alone = [0] * args.lookahead + [1]  # the engine's own fan-out: as few guesses as possible
                options = {"saguaro_c": c, "saguaro_f": group[0] // (args.lookahead + 1) + 1, "threads": args.threads}
                engine = Engine(
                    args.target,
                    args.draft,
                    "ssd",
                    lookahead=args.lookahead,
                    budget=1,
                    fan_out=alone,
                    fallback="neural",
                    max_batch=args.max_batch,
                    **options,
                )
                params = SamplingParams(temperature=temperature, max_new_tokens=args.max_new_tokens)
                with engine:
                    records = {name: record(engine, prompts, params) for name, prompts in sets.items()}
                for recorded in records.values():
                    replayed = sum(count for count, _ in replay(recorded, alone, args.lookahead, 1))
                    assert replayed == total_hits([c.stats for c in recorded.completions]), "the replay differs from the decode"
                for budget in group:
                    counts = {
                        name: {f: replay(recorded, f, args.lookahead, budget) for f in FAN_OUTS}
                        for name, recorded in records.items()
                    }
                    pooled = {f: [pair for of_set in counts.values() for pair in of_set[f]] for f in FAN_OUTS}
                    case = {"temperature": temperature, "saguaro_c": c, "saguaro_f": options["saguaro_f"], "budget": budget}
                    case |= {"sets": {name: compare(each) | acceptance(records[name]) for name, each in counts.items()}}
                    everything = Record([], [c for recorded in records.values() for c in recorded.completions])
                    cases.append(case | {"all": compare(pooled) | acceptance(everything)})
                    print(json.dumps(cases[-1]["all"] | case | {"sets": None}), flush=True)

    settings = settings_of(args) | {"prompts": {file.path.name: file.sha256 for file in files}}
    print(write_result({"what": args.name, "machine": machine.describe(), "settings": settings, HIT_RATES.figures: cases}))


if __name__ == "__main__":
    main()
