"""What a round is made of: each role's passes alone and beside the other's, what lies between two verifications, and what the
speed model makes of that.

    python profiling/rounds.py --prompts humaneval.jsonl:prompt --limit 4 [--device cuda]
    python profiling/rounds.py --prompts random --target random:Llama-3.1-8B --draft random:Llama-3.2-1B --device cuda

One decode in each mode, every span of it recorded: on a GPU they are times between events of the streams, on a CPU the host's.
A gap is from the end of a verification to the beginning of the next one, apart for rounds that missed the cache, as all do in "ar" and
"sd". What two devices would reach is projected by the speed model: T_v of "sd", where the draft is at rest, T_d with the target at rest,
hits and fallback as measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import machine
import torch
from workload import Workload, add_options, check_not_degraded, free, prepared

from ssd import Completion, Engine, SamplingParams
from ssd.decoding.speed_model import SsdModel, ar_tokens_per_s, sd_tokens_per_s
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.models.prompts import Prompt


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


def record(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[list[Timed], list[Completion]]:
    engine.decode(prompts[0], SamplingParams(max_new_tokens=16))
    engine.trace.record()
    with engine.trace.named("profiled"):
        completions = engine.decode(list(prompts), params)
    check_not_degraded(completions)
    events = engine.trace.timeline()["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [
        Timed(lanes[e["tid"]], e["name"], e["ts"] / 1e3, (e["ts"] + e["dur"]) / 1e3, e["args"])
        for e in events
        if e["ph"] == "X"
    ]
    return spans, completions


def draft_alone_ms(engine: Engine, batch: int, runs: int = 20) -> float:
    """The branches of a round with the target at rest, behind sequences that have ended: of next to no keys."""
    assert isinstance(engine.core.loop, SpeculativeSpeculative)
    cache, executor = engine.core.loop.cache, engine.core.executor
    n, sampled = executor.batch(batch), cache.tables.speculation.sampled
    times = []
    with torch.inference_mode():
        for _ in range(runs):
            run = executor.start("speculate", lambda: cache.branch(n), n, sampled)
            run.wait()
            times.append(run.span.ms)
    return median(times)


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def overlap(spans: Sequence[Timed], others: Sequence[Timed]) -> list[float]:
    """Of each span, the ms that the span of the others at the same place covers."""
    return [max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a, b in zip(spans, others, strict=False)]


def figures(spans: Sequence[Timed], completions: Sequence[Completion], batch: int) -> dict[str, Any]:
    """Medians of one mode's rounds, ms; rates are over the whole decode."""
    named = {name: [s for s in spans if s.name == name] for name in ("verify", "draft", "speculate", "prefill")}
    drafts, branches = named["draft"], named["speculate"]
    verify = [s for s in named["verify"] if s.details.get("hits", 0) + s.details.get("misses", 1)]  # none behind the end
    began = sorted(s.start for s in named["prefill"] if s.lane == "target")
    gaps: dict[bool, list[float]] = {False: [], True: []}  # by whether the look-up between missed
    for before, after in pairwise(verify):
        if any(before.end <= start < after.start for start in began):
            continue  # a request was admitted
        gaps[after.details.get("misses", 1) > 0].append(after.start - before.end)
    stats = [c.stats for c in completions]
    rounds = sum(s.rounds for s in stats)
    rates = [s.decode_tokens_per_s for s in stats if s.decode_tokens_per_s is not None]
    return {
        "t_verify_ms": middle([s.ms for s in verify]),
        "t_draft_ms": middle([s.ms for s in branches]) if branches else middle([s.ms for s in drafts]),
        "hidden_draft_ms": middle(overlap(branches, named["verify"])) if branches else None,
        "gap_after_hit_ms": middle(gaps[False]),
        "gap_after_miss_ms": middle(gaps[True]),
        "tokens_per_round": sum(s.accepted_per_round * s.rounds for s in stats) / max(1, rounds) + 1,
        "hit_rate": sum(h for s in stats for h, _ in s.hits_per_k.values())
        / max(1, sum(n for s in stats for _, n in s.hits_per_k.values())),
        "decode_tokens_per_s": median(rates),
        "batch": batch,
    }


def predicted(mode: str, m: dict[str, Any]) -> float:
    """What the speed model says of a decode's tokens/s, from what was measured in it."""
    verify, gap = m["t_verify_ms"] / 1e3, (m["gap_after_miss_ms"] or 0.0) / 1e3
    if mode == "ar":
        return ar_tokens_per_s(verify + gap)
    if mode == "sd":
        return sd_tokens_per_s(m["tokens_per_round"], verify, gap)
    return _ssd(m, m["t_verify_ms"], m["t_draft_ms"])


def _ssd(m: dict[str, Any], verify_ms: float, draft_ms: float) -> float:
    gap, miss, tokens = (m["gap_after_hit_ms"] or 0.0) / 1e3, (m["gap_after_miss_ms"] or 0.0) / 1e3, m["tokens_per_round"]
    fallback = max(0.0, miss - gap)
    model = SsdModel(m["hit_rate"], tokens, tokens, verify_ms / 1e3 + gap, draft_ms / 1e3 + gap, fallback, m["batch"])
    return model.tokens_per_s()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "rounds")
    args = parser.parse_args()
    with prepared(args) as work:
        measure(args, work)


def judged(modes: dict[str, dict[str, Any]], bandwidth: float, two_devices: bool) -> list[dict[str, Any]]:
    """What must hold of a decode on a GPU, and whether it does. bandwidth: bytes/s that it reads."""
    found = []

    def must(what: str, figure: float | None, at_least: float | None = None, at_most: float | None = None) -> None:
        if figure is not None:
            holds = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
            found.append({"what": what, "at_least": at_least, "at_most": at_most, "measured": figure, "holds": holds})

    def microseconds(milliseconds: float | None) -> float | None:
        return None if milliseconds is None else 1e3 * milliseconds

    for mode, m in modes.items():
        if mode == "ar":
            floor = m["footprint"]["target_pass_bytes"] / bandwidth
            must("ar, tokens/s of what the floor allows", m["decode_tokens_per_s"] * floor, at_least=0.85)
            must("ar, µs between verifications", microseconds(m["gap_after_miss_ms"]), at_most=15)
        if mode == "ssd":
            if not two_devices:
                must("ssd, µs between verifications after a hit", microseconds(m["gap_after_hit_ms"]), at_most=10)
            if m["hidden_draft_ms"] is not None:
                must(
                    "ssd, hidden of min(T_v, T_d)", m["hidden_draft_ms"] / min(m["t_verify_ms"], m["t_draft_ms"]), at_least=0.9
                )
        must(f"{mode}, tokens/s by the model over measured", m["model_over_measured"], at_least=0.9, at_most=1.1)
    return found


def measure(args: argparse.Namespace, work: Workload) -> None:
    params = SamplingParams(max_new_tokens=args.max_new_tokens, ignore_eos=args.ignore_eos)
    modes: dict[str, dict[str, Any]] = {}
    for mode in work.modes:
        with work.engine(mode) as engine:
            if args.batch == 1:
                each = [figures(*record(engine, [prompt], params), batch=1) for prompt in work.prompts]
            else:
                each = [figures(*record(engine, work.prompts, params), batch=args.batch)]
            for m in each:
                m["model_tokens_per_s"] = predicted(mode, m)
                m["model_over_measured"] = m["model_tokens_per_s"] / m["decode_tokens_per_s"]
            modes[mode] = {name: middle([m[name] for m in each if m[name] is not None]) for name in each[0]}
            modes[mode]["t_draft_alone_ms"] = draft_alone_ms(engine, args.batch) if mode == "ssd" else None
            modes[mode]["footprint"] = asdict(engine.footprint)
        del engine
        free()
        print(mode, json.dumps(modes[mode]), flush=True)
    result = {"what": args.name, **work.describe(), "rounds": modes, "musts": []}
    if work.on_gpu:
        result["musts"] = judged(modes, machine.gpu_read_bandwidth(), args.draft_device is not None)
        for must in result["musts"]:
            print(f"{must['what']}: {must['measured']:.3g}, {'holds' if must['holds'] else 'DOES NOT HOLD'}", flush=True)
    if "sd" in modes and "ssd" in modes:
        apart = _ssd(modes["ssd"], modes["sd"]["t_verify_ms"], modes["ssd"]["t_draft_alone_ms"])
        result["projected_two_devices_tokens_per_s"] = apart
        print(f"projected for two devices, from T_v and T_d alone: {apart:.1f} tokens/s", flush=True)
    machine.write_result(args.name, result, args.results)


if __name__ == "__main__":
    main()
