"""Decode speed of every mode on the same prompts, in turn, beside its floor and its peers.

    python profiling/decode.py --prompts humaneval.jsonl --field prompt --limit 8 --runs 3 --threads 2 \\
        --peer "llama.cpp bf16=python peer.py model.gguf humaneval.jsonl --threads 2"

A peer is a name and a command that prints a JSON object with `decode_tokens_per_s_median`. Peers and modes take turns (A B C A B C),
because machines drift. The result is one JSON file in profiling/results; profiling/tables.py makes the pages from those.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import machine

from ssd import Completion, Engine, SamplingParams


def prompts_of(path: Path, field: str, limit: int) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [row[field][0] if isinstance(row[field], list) else row[field] for row in rows]


def interval(values: list[float]) -> list[float]:
    """95 % of the mean, by Student's t for few values (normal beyond 30)."""
    quantiles = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]
    n = len(values)
    if n < 2:
        return [values[0], values[0]]
    t = quantiles[n - 2] if n - 2 < len(quantiles) else 2.04 if n < 31 else 1.96
    half = t * stdev(values) / math.sqrt(n)
    return [mean(values) - half, mean(values) + half]


def of_mode(completions: list[Completion], floor_s: float) -> dict[str, Any]:
    """One mode's figures over all prompts and runs; times are medians of the sequences' medians."""
    stats = [c.stats for c in completions]

    def middle(name: str) -> float | None:
        values = [getattr(s, name) for s in stats if getattr(s, name) is not None]
        return median(values) if values else None

    rates = [s.decode_tokens_per_s for s in stats if s.decode_tokens_per_s is not None]
    verify_ms = middle("t_verify_ms") or math.nan
    per_k: dict[int, list[int]] = {}
    for s in stats:
        for k, (hits, look_ups) in s.hits_per_k.items():
            entry = per_k.setdefault(k, [0, 0])
            entry[0] += hits
            entry[1] += look_ups
    return {
        "decode_tokens_per_s": {"median": median(rates), "mean_95": interval(rates), "min": min(rates), "max": max(rates)},
        "time_to_first_token_s": middle("time_to_first_token_s"),
        "tokens_per_round": mean(s.accepted_per_round + 1 for s in stats),
        "acceptance_rate": middle("acceptance_rate"),
        "hit_rate": middle("hit_rate"),
        "hits_per_k": per_k,
        "t_verify_ms": verify_ms,
        "t_draft_ms": middle("t_draft_ms"),
        "t_fallback_ms": middle("t_fallback_ms"),
        "hidden_draft_ms": middle("hidden_draft_ms"),
        "branches_unused": sum(s.branches_unused for s in stats),
        "verify_floor_ms": floor_s * 1e3,
        "verify_fraction_of_floor": floor_s * 1e3 / verify_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="a JSON object a line")
    parser.add_argument("--field", default="prompt")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="auto", help="'auto' for the target's own")
    parser.add_argument("--modes", default="ar,sd,ssd")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="for every mode; without it each mode's own default")
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--name", default="decode", help="of the result file")
    args = parser.parse_args()

    prompts = prompts_of(args.prompts, args.field, args.limit)
    params = SamplingParams(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=0)
    modes = args.modes.split(",")
    options = {"lookahead": args.lookahead, "budget": args.budget, "dtype": args.dtype, "max_batch": 1, "threads": args.threads}
    engines = {m: Engine(args.target, draft=None if m == "ar" else args.draft, mode=m, **options) for m in modes}
    bandwidth = {m: machine.read_bandwidth(e.threads) for m, e in engines.items()}
    completions: dict[str, list[Completion]] = {m: [] for m in modes}
    peers: dict[str, list[dict[str, Any]]] = {}
    for engine in engines.values():
        engine.decode(prompts[0], SamplingParams(max_new_tokens=8))
    for run in range(args.runs):
        for mode, engine in engines.items():
            completions[mode] += [engine.decode(prompt, params) for prompt in prompts]
            print(
                f"run {run + 1}: {mode} {median(c.stats.decode_tokens_per_s or 0 for c in completions[mode]):.1f} tokens/s",
                flush=True,
            )
        for peer in args.peer:
            name, _, command = peer.partition("=")
            done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
            peers.setdefault(name, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"run {run + 1}: {name} {peers[name][-1]['decode_tokens_per_s_median']:.1f} tokens/s", flush=True)

    expected = [c.token_ids for c in completions[modes[0]]]
    settings = {k: v for k, v in vars(args).items() if k not in ("peer", "name", "prompts")}
    settings["draft"] = Path(args.draft).name  # a result says nothing of this machine's folders
    result = {
        "what": args.name,
        "machine": machine.describe(),
        "settings": settings
        | {"prompts": args.prompts.name, "prompts_sha256": hashlib.sha256(args.prompts.read_bytes()).hexdigest()},
        "weight_bytes": {m: e.target_model.weight_bytes() for m, e in engines.items()},
        "read_bandwidth_bytes_per_s": bandwidth,
        "threads": {m: e.threads for m, e in engines.items()},
        "modes": {m: of_mode(completions[m], engines[m].target_model.weight_bytes() / bandwidth[m]) for m in modes},
        "identical": {m: [c.token_ids for c in completions[m]] == expected for m in modes} if args.temperature == 0 else None,
        "peers": {
            n: {"decode_tokens_per_s": [r["decode_tokens_per_s_median"] for r in rs], "first": rs[0]} for n, rs in peers.items()
        },
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "stats": {m: [asdict(c.stats) for c in completions[m]] for m in modes},
    }
    machine.write_result(args.name, result)


if __name__ == "__main__":
    main()
