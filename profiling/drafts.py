"""What drafts are worth on the same target and prompts: tokens a round by set, bytes a step, time a step.

    python profiling/drafts.py --draft trained --draft self:25 --prompts humaneval.jsonl:prompt --prompts gsm8k.jsonl:question

Greedy speculative decoding with K = 4, whole sets together. A greedy text of a small model may run in a circle, which any draft
learns to follow: prompts whose output ends so are counted apart. A step is timed by itself, its weights as warm as repetition leaves
them, for 1 row and for as many as SSD's branches have. profiling/decode.py times whole decodes with each draft.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import machine
import torch
from decode import interval
from workload import prompts_of

from ssd import Completion, Engine, SamplingParams
from ssd.kv.cache import PAGE_SIZE, KVCache, Rows
from ssd.models.pair import Draft, load_draft, load_target
from ssd.models.registry import draft_named

KEYS = 256  # that a timed step attends to
STEPS = 200


def runs_in_a_circle(tokens: Sequence[int]) -> bool:
    """Whether the text ends by saying the same at least three times, over at least 16 tokens."""
    n = len(tokens)
    return any(
        all(tokens[n - 1 - i] == tokens[n - 1 - i - period] for i in range(max(16, 3 * period) - period))
        for period in range(1, n // 3 + 1)
        if max(16, 3 * period) <= n
    )


def tokens_per_round(completions: Sequence[Completion]) -> dict[str, Any] | None:
    """The mean over prompts, its interval, and all tokens over all rounds."""
    stats = [c.stats for c in completions if c.stats.rounds]
    if not stats:
        return None
    each = [s.accepted_per_round + 1 for s in stats]
    pooled = 1 + sum(s.accepted_per_round * s.rounds for s in stats) / sum(s.rounds for s in stats)
    return {"prompts": len(stats), "mean": sum(each) / len(each), "mean_95": interval(each), "pooled": pooled}


def step_ms(draft: Draft, rows: int, threads: int) -> float:
    """The median time of a draft's forward pass with its choice of a token, for rows of as many sequences."""
    model, pages = draft.model, -(-KEYS // PAGE_SIZE)
    cache = KVCache(model.config, 1 + rows * pages, model.dtype, model.device)
    table = 1 + torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    last = torch.full((rows,), KEYS - 1, dtype=torch.int32)
    step = Rows(
        ids=torch.arange(rows, dtype=torch.int32) + 100,
        positions=last,
        kv_slots=table[:, -1] * PAGE_SIZE + PAGE_SIZE - 1,
        row_seq=torch.arange(rows, dtype=torch.int32),
        prefix_len=last + 1,
        page_table=table,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times = []
    with torch.inference_mode():
        for _ in range(STEPS):
            start = time.perf_counter()
            model.logits(model.forward(step, cache)).argmax(dim=-1)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 1e3 * median(times[STEPS // 10 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--draft", action="append", required=True, help="'auto' for the target's own; may be given several times"
    )
    parser.add_argument("--prompts", action="append", required=True, metavar="FILE.jsonl:FIELD")
    parser.add_argument("--limit", type=int, default=1_000_000, help="prompts of each file")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--lookahead", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--name", default="drafts", help="of the result file")
    args = parser.parse_args()
    files = [(Path(path), name) for path, _, name in (each.rpartition(":") for each in args.prompts)]
    sets = {path.stem: prompts_of(path, name, args.limit) for path, name in files}
    params = SamplingParams(max_new_tokens=args.max_new_tokens)

    target = load_target(args.target, torch.bfloat16, torch.device("cpu"), lambda context: context, lambda fraction: None)
    drafts = []
    for name in args.draft:
        with Engine(args.target, name, "sd", lookahead=args.lookahead, max_batch=args.max_batch, max_context=1024) as engine:
            found = {}
            for of, prompts in sets.items():
                completions = engine.decode(prompts, params)
                circles = [c for c in completions if runs_in_a_circle(c.token_ids)]
                found[of] = {
                    "all": tokens_per_round(completions),
                    "in_a_circle": tokens_per_round(circles),
                    "others": tokens_per_round([c for c in completions if c not in circles]),
                }
                print(name, of, json.dumps(found[of]), flush=True)
                found[of]["completions"] = completions
            every = [c for each in found.values() for c in each.pop("completions")]
        draft = load_draft(str(draft_named(name, args.target)), target, 1024)
        steps = [
            {"rows": rows, "threads": threads, "ms": step_ms(draft, rows, threads)}
            for rows in map(int, args.rows.split(","))
            for threads in (1, 2)
        ]
        config = draft.model.config
        drafts.append(
            {
                "draft": Path(name).name,
                "layers": config.num_layers,
                "vocabulary": draft.model.vocab_size,
                "weight_bytes": draft.model.weight_bytes(),
                "sets": found,
                "all": tokens_per_round(every),
                "steps": steps,
            }
        )
        print(json.dumps(drafts[-1]), flush=True)

    settings = {k: v for k, v in vars(args).items() if k not in ("name", "prompts", "draft")}
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in files}
    result = {"what": args.name, "machine": machine.describe(), "settings": settings | {"prompts": digests}, "drafts": drafts}
    machine.write_result(args.name, result)


if __name__ == "__main__":
    main()
