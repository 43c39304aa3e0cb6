"""Hit rates of every fan-out on the same decode, and what Saguaro sampling trades: arXiv 2603.03251, sections 4.1 and 4.2.

    python profiling/hit_rates.py --prompts humaneval.jsonl:prompt --prompts gsm8k.jsonl:question --limit 32

With the neural fallback a hit and a miss hand out the same speculation, so the outcomes of a decode do not depend on the fan-out:
one decode records, for every look-up, how many tokens had been accepted and at which rank of the draft's list the next one stood,
and every fan-out and budget is replayed on that record. The engine's own hits are replayed too, and must come out the same.
Intervals are 95 % of the mean over prompts, paired. Saguaro sampling changes the decode itself: a decode for each C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import machine
from decode import interval
from workload import prompts_of

from ssd import Completion, Engine, SamplingParams
from ssd.decoding.cache import SpeculationCache
from ssd.decoding.fanout import Measured, tables

FAN_OUTS = ("measured", "geometric", "uniform")


@dataclass
class LookUp:
    request: int
    spec_len: int
    k: int
    rank: int


@dataclass
class Record:
    """A decode's look-ups: rounds in order, in each the slots that looked an outcome up."""

    rounds: list[list[LookUp]]
    completions: list[Completion] = field(repr=False)


def record(engine: Engine, prompts: Sequence[str], params: SamplingParams) -> Record:
    engine.trace.record()
    completions = engine.decode(list(prompts), params)
    events = engine.trace.timeline()["traceEvents"]
    in_slot: dict[int, int] = {}
    rounds, admitted = [], 0
    for event in events:
        if event["name"] == "prefill" and event["tid"] == 0:  # requests are admitted in order
            in_slot[event["args"]["slot"]] = admitted
            admitted += 1
        if event["name"] == "look up":
            seen = enumerate(event["args"]["seen"])
            rounds.append([LookUp(in_slot[slot], length, k, rank) for slot, (_, length, k, rank) in seen if k >= 0])
    assert admitted == len(prompts)
    return Record(rounds, completions)


def replay(recorded: Record, fan_out: str | Sequence[int], lookahead: int, budget: int) -> list[tuple[int, int]]:
    """(hits, look-ups) of every request, had the guesses been shared out so."""
    measured = Measured(lookahead, budget) if fan_out == "measured" else None
    newest = tables(fan_out, lookahead, budget).tolist()
    in_use = newest  # the guesses that a look-up meets were made two rounds' learning ago
    was_hit = dict.fromkeys(range(len(recorded.completions)), False)
    counts = [[0, 0] for _ in recorded.completions]
    for round_ in recorded.rounds:
        seen = []
        for at in round_:
            after_hit = was_hit[at.request]
            hit = at.rank < in_use[after_hit][at.spec_len][at.k]
            counts[at.request][0] += hit
            counts[at.request][1] += 1
            was_hit[at.request] = hit
            seen.append((after_hit, at))
        in_use = newest
        for after_hit, at in seen if measured is not None else ():
            measured.observe(after_hit, at.spec_len, at.k, at.rank)
            if measured.observations % SpeculationCache.REFRESH == 0:
                newest = measured.tables().tolist()
    return [(hits, look_ups) for hits, look_ups in counts]


def rates(counts: Sequence[tuple[int, int]]) -> list[float]:
    return [hits / look_ups for hits, look_ups in counts if look_ups]


def compare(counts: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Pooled hit rates, and how much more than the others "measured" hits, prompt by prompt."""
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
    stats = [c.stats for c in recorded.completions]
    rounds = sum(s.rounds for s in stats)
    return {
        "tokens_per_round": 1 + sum(s.accepted_per_round * s.rounds for s in stats) / rounds,
        "acceptance_rate": sum(s.accepted_per_round * s.rounds for s in stats)
        / sum(length * n for s in stats for length, n in s.proposed_counts.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", action="append", required=True, metavar="FILE.jsonl:FIELD")
    parser.add_argument("--limit", type=int, default=32, help="prompts of each file")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="self:25")
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--budgets", default="8,16")
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--saguaro-c", default="1,0.7,0.5,0.3", help="at temperatures above 0")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="hit-rates", help="of the result file")
    args = parser.parse_args()
    budgets = [int(b) for b in args.budgets.split(",")]
    files = [(Path(path), name) for path, _, name in (each.rpartition(":") for each in args.prompts)]
    sets = {path.stem: prompts_of(path, name, args.limit) for path, name in files}

    cases = []
    for temperature in map(float, args.temperatures.split(",")):
        for c in map(float, args.saguaro_c.split(",")) if temperature > 0 else (1.0,):
            # F follows from the budget, so a C below 1 has a decode of its own for each.
            for group in [budgets] if c == 1 else [[b] for b in budgets]:
                alone = [0] * args.lookahead + [1]  # what the engine itself guesses: as little as it can
                options = {"saguaro_c": c, "saguaro_f": group[0] // (args.lookahead + 1) + 1, "threads": args.threads}
                engine = Engine(
                    args.target, args.draft, "ssd", args.lookahead, 1, alone, "neural", max_batch=args.max_batch, **options
                )
                params = SamplingParams(temperature=temperature, max_new_tokens=args.max_new_tokens)
                with engine:
                    records = {name: record(engine, prompts, params) for name, prompts in sets.items()}
                for recorded in records.values():
                    own = sum(hits for c in recorded.completions for hits, _ in c.stats.hits_per_k.values())
                    assert own == sum(hits for hits, _ in replay(recorded, alone, args.lookahead, 1)), (
                        "the replay is not the decode"
                    )
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

    settings = {k: v for k, v in vars(args).items() if k not in ("name", "prompts")}
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in files}
    result = {"what": args.name, "machine": machine.describe(), "settings": settings | {"prompts": digests}, "hit_rates": cases}
    machine.write_result(args.name, result)


if __name__ == "__main__":
    main()
