"""The longest gap between the pieces of running streams while a long prompt is stored.

    python profiling/gaps.py --prompt-tokens 1500 --streams 3

The prompt is stored in chunks, and running streams get a round between two chunks. So no gap may last longer than one chunk
and two rounds, as measured in the same run. Prints a JSON line for each mode; ends with 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from typing import Any

from common import musts
from common.options import add_flags
from common.spans import named

from ssd import Engine, SamplingParams
from ssd.bench import machine
from ssd.bench.statistics import middle
from ssd.requests import Stream

QUESTION = "Tell a long story about a lighthouse."


def measure(engine: Engine, streams: int, prompt_tokens: int) -> dict[str, Any]:
    """Decode `streams` prompts, add one of `prompt_tokens` tokens, and time the pieces until its first token."""
    params = SamplingParams(max_new_tokens=min(400, engine.max_context - 100), ignore_eos=True)
    running = [engine.stream(QUESTION, params) for _ in range(streams)]
    pieces = [iter(stream) for stream in running]
    for _ in range(10):  # each stream has committed tokens, and rounds are warm
        for piece in pieces:
            next(piece)
    engine.trace.record()
    prompt = [100 + i % 150 for i in range(prompt_tokens)]
    late = engine.stream(prompt, SamplingParams(max_new_tokens=8, ignore_eos=True))
    times: list[list[float]] = [[time.perf_counter()] for _ in pieces]
    while len(engine.core.scheduler.running) <= streams:
        for own_times, piece in zip(times, pieces, strict=True):
            next(piece)
            own_times.append(time.perf_counter())
    close([*running, late])
    gap_ms = 1e3 * max(after - before for own_times in times for before, after in pairwise(own_times))
    return figures(engine) | {"longest_gap_ms": gap_ms}


def figures(engine: Engine) -> dict[str, Any]:
    """The longest chunk, with its draft's part, and the median round without one; ms."""
    spans = engine.trace.spans
    chunks = {lane: [s.ms for s in named(spans, "prefill") if s.lane == lane] for lane in ("target", "draft")}
    verifications = named(spans, "verify")
    prefills = [s.start for s in named(spans, "prefill")]
    rounds = [
        1e3 * (after.start - before.start)
        for before, after in pairwise(verifications)
        if not any(before.start <= start < after.start for start in prefills)
    ]
    return {
        "chunks": len(chunks["target"]),
        "chunk_ms": max(chunks["target"]) + max(chunks["draft"], default=0.0),
        "round_ms": middle(rounds) or max(s.ms for s in verifications),
    }


def close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="tokens of the long prompt")
    parser.add_argument("--streams", type=int, default=3, help="streams that run when it arrives")
    parser.add_argument("--modes", default="ar,sd,ssd", help="decoding modes, separated by commas")
    add_flags(parser, "target", "draft", "device", "threads", "draft_threads", "lookahead", "budget")
    args = parser.parse_args()
    print(json.dumps({"machine": machine.describe()}))
    kept = True
    for mode in args.modes.split(","):
        options = {name: getattr(args, name) for name in ("device", "threads", "draft_threads", "lookahead", "budget")}
        draft = None if mode == "ar" else args.draft
        with Engine(args.target, draft, mode, max_batch=args.streams + 1, **options) as engine:
            found = measure(engine, args.streams, args.prompt_tokens)
        must = musts.Must("longest gap, ms", at_most=found["chunk_ms"] + 2 * found["round_ms"]).judged(found["longest_gap_ms"])
        kept &= must["holds"]
        print(json.dumps({"mode": mode, **found}))
        print(musts.line(must))
    sys.exit(not kept)


if __name__ == "__main__":
    main()
