"""Drafts compared on the same target and prompts: tokens per round on each set of prompts, bytes per step, time per step.

    python profiling/drafts.py --draft trained --draft self:25 --prompts humaneval.jsonl:prompt --prompts gsm8k.jsonl:question

Decoding is greedy and speculative, K = 4, a whole set in one call. The greedy text of a small model may run in a circle, and
every draft predicts a circle well, so prompts whose output ends in one are also counted apart. A step is timed alone, in a
loop that may leave its weights in the caches, for 1 row and for the rows of SSD's branches. profiling/decode.py times whole
decodes with each draft.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common.options import add_flags
from common.results import DRAFTS, settings_of, write_result
from common.workload import PromptFile

from ssd import Completion, Engine, SamplingParams
from ssd.bench import machine
from ssd.bench.statistics import interval
from ssd.bench.statistics import tokens_per_round as pooled_tokens_per_round
from ssd.kv.cache import PAGE_SIZE, KVCache, Rows
from ssd.models.pair import Draft, load_draft, load_target
from ssd.models.registry import draft_named

KEYS = 256  # number of keys that each row of a timed step attends to
STEPS = 200


def runs_in_a_circle(tokens: Sequence[int]) -> bool:
    """Whether the text ends in one sequence repeated at least three times, over at least 16 tokens."""
    n = len(tokens)
    return any(
        all(tokens[n - 1 - i] == tokens[n - 1 - i - period] for i in range(max(16, 3 * period) - period))
        for period in range(1, n // 3 + 1)
        if max(16, 3 * period) <= n
    )


def tokens_per_round(completions: Sequence[Completion]) -> dict[str, Any] | None:
    """Tokens per round: the mean over prompts with its interval, and pooled (all tokens over all rounds)."""
    stats = [c.stats for c in completions if c.stats.rounds]
    if not stats:
        return None
    each = [s.mean_acceptance_length for s in stats]
    mean = sum(each) / len(each)
    return {"prompts": len(stats), "mean": mean, "mean_95": interval(each), "pooled": pooled_tokens_per_round(stats)}


def step_ms(draft: Draft, rows: int, threads: int) -> float:
    """The median time of one greedy draft step: a forward pass of `rows` rows, each of its own sequence, and their argmax."""
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
        "--draft",
        action="append",
        required=True,
        help="a draft, or 'auto' for the target's own; repeatable",
    )
    parser.add_argument(
        "--prompts", action="append", required=True, metavar="FILE.jsonl:FIELD", help="a set of prompts; repeatable"
    )
    parser.add_argument("--limit", type=int, default=1_000_000, help="prompts taken from each file")
    add_flags(parser, "target", "lookahead", max_new_tokens=128, max_batch=16)
    parser.add_argument("--rows", default="1,8", help="numbers of rows in a timed step, separated by commas")
    parser.add_argument("--name", default=DRAFTS.what, help="name of the result file")
    args = parser.parse_args()
    files = [PromptFile.parse(each) for each in args.prompts]
    sets = {file.path.stem: file.prompts(args.limit) for file in files}
    params = SamplingParams(max_new_tokens=args.max_new_tokens)

    target = load_target(args.target, torch.bfloat16, torch.device("cpu"), lambda context: context, lambda fraction: None)
    drafts = []
    for name in args.draft:
        with Engine(args.target, name, "sd", lookahead=args.lookahead, max_batch=args.max_batch, max_context=1024) as engine:
            by_set = {}
            for set_name, prompts in sets.items():
                completions = engine.decode(prompts, params)
                circles = [c for c in completions if runs_in_a_circle(c.token_ids)]
                by_set[set_name] = {
                    "all": tokens_per_round(completions),
                    "in_a_circle": tokens_per_round(circles),
                    "others": tokens_per_round([c for c in completions if c not in circles]),
                }
                print(name, set_name, json.dumps(by_set[set_name]), flush=True)
                by_set[set_name]["completions"] = completions
            every = [c for each in by_set.values() for c in each.pop("completions")]
        draft = load_draft(str(draft_named(name, args.target)), target, lambda context: 1024)
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
                "sets": by_set,
                "all": tokens_per_round(every),
                "steps": steps,
            }
        )
        print(json.dumps(drafts[-1]), flush=True)

    settings = settings_of(args, "draft") | {"prompts": {file.path.name: file.sha256 for file in files}}
    print(write_result({"what": args.name, "machine": machine.describe(), "settings": settings, DRAFTS.figures: drafts}))


if __name__ == "__main__":
    main()
