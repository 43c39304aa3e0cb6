"""Decode speed of every mode on the same prompts, beside the floor and other engines (peers).

    python profiling/decode.py --prompts humaneval.jsonl:prompt --limit 8 --runs 3 --threads 2 \\
        --peer "llama.cpp bf16=python peer.py model.gguf humaneval.jsonl --threads 2"

A peer is a name and a command whose last line of output is a JSON object with `decode_tokens_per_s_median`. Modes and peers
take turns (A B C A B C), because machines drift. The result is one JSON file in profiling/results; profiling/tables.py makes
the pages from it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from common.options import add_flags
from common.results import DECODE, write_result
from common.workload import Workload, add_options, prepared

from ssd import Completion, SamplingParams
from ssd.bench import machine
from ssd.bench.figures import of_sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, DECODE.what)
    add_flags(parser, "temperature")
    parser.add_argument("--runs", type=int, default=3, help="number of decodes of all prompts by each mode and peer")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="another engine, and the command that runs it"
    )
    args = parser.parse_args()
    measure(args, prepared(args))


def measure(args: argparse.Namespace, work: Workload) -> None:
    prompts, modes = work.prompts, work.modes
    params = SamplingParams(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, ignore_eos=args.ignore_eos, seed=0
    )
    engines = {m: work.engine(m) for m in modes}
    if work.on_gpu:
        bandwidth = dict.fromkeys(modes, machine.gpu_read_bandwidth())
    else:
        bandwidth = {m: machine.read_bandwidth(e.threads) for m, e in engines.items()}
    completions: dict[str, list[Completion]] = {m: [] for m in modes}
    peers: dict[str, list[dict[str, Any]]] = {}
    for engine in engines.values():
        engine.decode(prompts[0], SamplingParams(max_new_tokens=8))
    for run in range(args.runs):
        for mode, engine in engines.items():
            completions[mode] += work.decode(engine, params)
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
    result = {
        "what": args.name,
        **work.describe(),
        "weight_bytes": {m: e.target_model.weight_bytes() for m, e in engines.items()},
        "read_bandwidth_bytes_per_s": bandwidth,
        "threads": {m: e.threads for m, e in engines.items()},
        DECODE.figures: {
            m: of_sequences([c.stats for c in completions[m]], engines[m].target_model.weight_bytes() / bandwidth[m])
            for m in modes
        },
        "identical": {m: [c.token_ids for c in completions[m]] == expected for m in modes} if args.temperature == 0 else None,
        "peers": {
            n: {"decode_tokens_per_s": [r["decode_tokens_per_s_median"] for r in rs], "first": rs[0]} for n, rs in peers.items()
        },
        "footprint": {m: asdict(e.footprint) for m, e in engines.items()},
        "peak_memory_bytes": sum(torch.cuda.max_memory_allocated(each) for each in range(torch.cuda.device_count()))
        if work.on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "stats": {m: [asdict(c.stats) for c in completions[m]] for m in modes},
    }
    print(write_result(result, args.results))


if __name__ == "__main__":
    main()
