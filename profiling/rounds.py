"""What a round is made of: each role's passes alone and beside the other's, what lies between two verifications, and what the
speed model makes of that.

    python profiling/rounds.py --prompts humaneval.jsonl:prompt --limit 4 [--device cuda]

One decode in each mode, every span of it recorded: on a GPU they are times between events of the streams, on a CPU the host's.
A gap is from the end of a verification to the beginning of the next one, apart for rounds that missed the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import machine
from decode import prompts_of

from ssd import Completion, Engine, SamplingParams
from ssd.decoding.speed_model import SsdModel, ar_tokens_per_s, sd_tokens_per_s


@dataclass
class Timed:
    """A span of a timeline, in ms."""

    lane: str
    name: str
    start: float
    end: float
    details: dict[str, Any]

    @property
    def ms(self) -> float:
        return self.end - self.start


def record(engine: Engine, prompts: Sequence[str], params: SamplingParams) -> tuple[list[Timed], list[Completion]]:
    engine.decode(list(prompts[:1]), SamplingParams(max_new_tokens=16))
    engine.trace.record()
    completions = engine.decode(list(prompts), params)
    events = engine.trace.timeline()["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [
        Timed(lanes[e["tid"]], e["name"], e["ts"] / 1e3, (e["ts"] + e["dur"]) / 1e3, e["args"])
        for e in events
        if e["ph"] == "X"
    ]
    return spans, completions


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def overlap(spans: Sequence[Timed], others: Sequence[Timed]) -> list[float]:
    """Of each span, the ms that the span of the others at the same place covers."""
    return [max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a, b in zip(spans, others, strict=False)]


def figures(spans: Sequence[Timed], completions: Sequence[Completion], batch: int) -> dict[str, Any]:
    """Medians of one mode's rounds, ms; rates are over the whole decode."""
    named = {name: [s for s in spans if s.name == name] for name in ("verify", "look up", "speculate", "prefill")}
    verify, look_ups, branches = named["verify"], named["look up"], named["speculate"]
    began = sorted(s.start for s in named["prefill"])
    gaps: dict[bool, list[float]] = {False: [], True: []}  # by whether the look-up between missed
    for before, after in pairwise(verify):
        if any(before.end <= start < after.start for start in began):
            continue  # a request was admitted
        between = [s for s in look_ups if before.end <= s.end <= after.start]
        gaps[any(s.details.get("misses", 1) for s in between)].append(after.start - before.end)
    stats = [c.stats for c in completions]
    rounds = sum(s.rounds for s in stats)
    rates = [s.decode_tokens_per_s for s in stats if s.decode_tokens_per_s is not None]
    return {
        "t_verify_ms": middle([s.ms for s in verify]),
        "t_draft_ms": middle([s.ms for s in branches]) if branches else middle([s.ms for s in look_ups]),
        "hidden_draft_ms": middle(overlap(branches, verify)) if branches else None,
        "gap_after_hit_ms": middle(gaps[False]) if look_ups else middle(gaps[True]),
        "gap_after_miss_ms": middle(gaps[True]) if look_ups else None,
        "tokens_per_round": sum(s.accepted_per_round * s.rounds for s in stats) / max(1, rounds) + 1,
        "hit_rate": sum(h for s in stats for h, _ in s.hits_per_k.values())
        / max(1, sum(n for s in stats for _, n in s.hits_per_k.values())),
        "decode_tokens_per_s": median(rates),
        "batch": batch,
    }


def predicted(modes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the speed model says of each mode, from what was measured in it."""
    found = {}
    for name, m in modes.items():
        verify, gap = m["t_verify_ms"] / 1e3, (m["gap_after_hit_ms"] or 0.0) / 1e3
        if name == "ar":
            found[name] = ar_tokens_per_s(verify + gap)
        elif name == "sd":
            found[name] = sd_tokens_per_s(m["tokens_per_round"], verify, (m["gap_after_miss_ms"] or 0.0) / 1e3)
        else:
            tokens, miss = m["tokens_per_round"], (m["gap_after_miss_ms"] or 0.0) / 1e3
            model = SsdModel(
                m["hit_rate"], tokens, tokens, verify + gap, m["t_draft_ms"] / 1e3 + gap, max(0.0, miss - gap), m["batch"]
            )
            found[name] = model.tokens_per_s()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, metavar="FILE.jsonl:FIELD")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--modes", default="ar,sd,ssd")
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--name", default="rounds", help="of the result file")
    args = parser.parse_args()
    path, _, field = args.prompts.rpartition(":")
    prompts = prompts_of(Path(path), field, args.limit)
    params = SamplingParams(max_new_tokens=args.max_new_tokens)

    modes = {}
    for mode in args.modes.split(","):
        options = {"lookahead": args.lookahead, "budget": args.budget, "max_batch": args.batch, "device": args.device}
        with Engine(args.target, None if mode == "ar" else args.draft, mode, **options) as engine:
            if args.batch == 1:
                runs = [record(engine, [prompt], params) for prompt in prompts]
                each = [figures(*run, batch=1) for run in runs]
                modes[mode] = {
                    name: median(values) if (values := [e[name] for e in each if e[name] is not None]) else None
                    for name in each[0]
                }
            else:
                modes[mode] = figures(*record(engine, prompts, params), batch=args.batch)
        print(mode, json.dumps(modes[mode]), flush=True)
    model = predicted(modes)
    for mode, rate in model.items():
        modes[mode] |= {"model_tokens_per_s": rate, "model_over_measured": rate / modes[mode]["decode_tokens_per_s"]}
    settings = {k: v for k, v in vars(args).items() if k not in ("name", "prompts")}
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    result = {
        "what": args.name,
        "machine": machine.describe(),
        "settings": settings | {"prompts": Path(path).name, "prompts_sha256": digest},
        "rounds": modes,
    }
    machine.write_result(args.name, result)


if __name__ == "__main__":
    main()
