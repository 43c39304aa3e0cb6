"""The parts of a round: each role's passes, alone and beside the other role's, the gaps between verifications, and the speed
that the speed model computes from them.

    python profiling/rounds.py --prompts humaneval.jsonl:prompt --limit 4 [--device cuda]
    python profiling/rounds.py --prompts random --target bigram:Llama-3.1-8B --draft bigram-draft:Llama-3.2-1B --device cuda

Each mode decodes the prompts once, and all spans are recorded: on a GPU the times between events of the streams, on a CPU the
times of the host. A gap goes from the end of a verification to the start of the next one. Gaps after a hit and after a miss
are counted apart; in "ar" and "sd" every round counts as a miss. If the branches take longer than the verification, the gap
after a hit contains the wait for them. The speed model also projects the speed on two devices: it
takes T_v from "sd", where the draft is idle, and T_d with the target idle; hits and fallback are as measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from common import musts
from common.musts import Must
from common.results import ROUNDS, Row, write_result
from common.spans import named, overlaps_ms, recorded_decode
from common.workload import Workload, add_options, free, prepared

from ssd import Completion, Engine, SamplingParams
from ssd.bench import machine
from ssd.bench.statistics import hit_rate, middle, tokens_per_round
from ssd.decoding.speed_model import SsdModel, ar_tokens_per_s, sd_tokens_per_s
from ssd.models.prompts import Prompt
from ssd.plan.calibration import draft_alone_ms
from ssd.runtime.trace import Span


def record(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[list[Span], list[Completion]]:
    """The spans and completions of a decode, after a short one that warms up the engine."""
    engine.decode(prompts[0], SamplingParams(max_new_tokens=16))
    return recorded_decode(engine, prompts, params)


def figures(spans: Sequence[Span], completions: Sequence[Completion], batch: int) -> dict[str, Any]:
    """One mode's figures: medians over its rounds, in ms, and rates over the whole decode."""
    drafts, branches = named(spans, "draft"), named(spans, "speculate")
    verifications = named(spans, "verify")
    # A round that began after all sequences had ended has neither hits nor misses.
    counted = [s for s in verifications if s.details.get("hits", 0) + s.details.get("misses", 1)]
    admissions = [s.start for s in named(spans, "prefill") if s.lane == "target"]
    gaps_ms: dict[bool, list[float]] = {False: [], True: []}  # by whether the look-up in between missed
    for before, after in pairwise(counted):
        if any(before.end <= start < after.start for start in admissions):
            continue
        gaps_ms[after.details.get("misses", 1) > 0].append(1e3 * (after.start - before.end))
    stats = [c.stats for c in completions]
    return {
        "t_verify_ms": middle(s.ms for s in counted),
        "t_draft_ms": middle(s.ms for s in branches or drafts),
        "hidden_draft_ms": middle(overlaps_ms(branches, verifications)),
        "gap_after_hit_ms": middle(gaps_ms[False]),
        "gap_after_miss_ms": middle(gaps_ms[True]),
        "tokens_per_round": tokens_per_round(stats),
        "hit_rate": hit_rate(stats),
        "decode_tokens_per_s": middle(s.decode_tokens_per_s for s in stats),
        "batch": batch,
    }


def predicted(mode: str, m: dict[str, Any]) -> float:
    """Tokens/s of a decode by the speed model, from the figures measured in it."""
    verify, gap = m["t_verify_ms"] / 1e3, (m["gap_after_miss_ms"] or 0.0) / 1e3
    if mode == "ar":
        return ar_tokens_per_s(verify + gap)
    if mode == "sd":
        return sd_tokens_per_s(m["tokens_per_round"], verify, gap)
    return _ssd(m, m["t_verify_ms"], m["t_draft_ms"])


def hop_ms(m: dict[str, Any]) -> float:
    """The gap after a hit, without the wait for branches that take longer than the verification."""
    gap: float = m["gap_after_hit_ms"] or 0.0
    return max(0.0, gap - max(0.0, m["t_draft_ms"] - m["t_verify_ms"]))


def _ssd(m: dict[str, Any], verify_ms: float, draft_ms: float) -> float:
    hop, tokens = hop_ms(m) / 1e3, m["tokens_per_round"]
    fallback = max(0.0, (m["gap_after_miss_ms"] or 0.0) - (m["gap_after_hit_ms"] or 0.0)) / 1e3
    model = SsdModel(m["hit_rate"], tokens, tokens, verify_ms / 1e3 + hop, draft_ms / 1e3 + hop, fallback, m["batch"])
    return model.tokens_per_s()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ROUNDS.what)
    args = parser.parse_args()
    measure(args, prepared(args))


def judged(modes: dict[str, dict[str, Any]], bandwidth: float, two_devices: bool) -> list[Row]:
    """The musts of a decode on a GPU, and whether each holds. bandwidth: bytes/s that the GPU reads."""
    rows = []
    for mode, m in modes.items():
        if mode == "ar":
            floor = m["footprint"]["target_pass_bytes"] / bandwidth
            rows.append(Must("ar, tokens/s over those of the floor", at_least=0.85).judged(m["decode_tokens_per_s"] * floor))
            if m["gap_after_miss_ms"] is not None:
                rows.append(Must("ar, µs between verifications", at_most=15).judged(1e3 * m["gap_after_miss_ms"]))
        if mode == "ssd":
            if not two_devices and m["gap_after_hit_ms"] is not None:
                must = Must("ssd, µs between verifications after a hit, the wait for the draft left out", at_most=10)
                rows.append(must.judged(1e3 * hop_ms(m)))
            if m["hidden_draft_ms"] is not None:
                share = m["hidden_draft_ms"] / min(m["t_verify_ms"], m["t_draft_ms"])
                rows.append(Must("ssd, hidden draft time over min(T_v, T_d)", at_least=0.9).judged(share))
        model = Must(f"{mode}, tokens/s by the model over measured", at_least=0.9, at_most=1.1)
        rows.append(model.judged(m["model_over_measured"]))
    return rows


def measure(args: argparse.Namespace, work: Workload) -> None:
    params = SamplingParams(max_new_tokens=args.max_new_tokens, ignore_eos=args.ignore_eos)
    modes: dict[str, dict[str, Any]] = {}
    for mode in work.modes:
        with work.engine(mode) as engine:
            if args.batch == 1:
                measured = [figures(*record(engine, [prompt], params), batch=1) for prompt in work.prompts]
            else:
                measured = [figures(*record(engine, work.prompts, params), batch=args.batch)]
            for m in measured:
                m["model_tokens_per_s"] = predicted(mode, m)
                m["model_over_measured"] = m["model_tokens_per_s"] / m["decode_tokens_per_s"]
            modes[mode] = {name: middle(m[name] for m in measured) for name in measured[0]}
            modes[mode]["t_draft_alone_ms"] = draft_alone_ms(engine, args.batch) if mode == "ssd" else None
            modes[mode]["footprint"] = asdict(engine.footprint)
        del engine
        free()
        print(mode, json.dumps(modes[mode]), flush=True)
    result = {"what": args.name, **work.describe(), ROUNDS.figures: modes, "musts": []}
    if work.on_gpu:
        result["musts"] = judged(modes, machine.gpu_read_bandwidth(), args.draft_device is not None)
        for must in result["musts"]:
            print(musts.line(must), flush=True)
    if "sd" in modes and "ssd" in modes:
        apart = _ssd(modes["ssd"], modes["sd"]["t_verify_ms"], modes["ssd"]["t_draft_alone_ms"])
        result["projected_two_devices_tokens_per_s"] = apart
        print(f"projected for two devices from T_v and T_d alone: {apart:.1f} tokens/s", flush=True)
    print(write_result(result, args.results))


if __name__ == "__main__":
    main()
