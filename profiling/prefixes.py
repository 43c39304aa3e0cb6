"""What the prefix cache saves: conversations, a long system prompt, and the cost of the look-up itself.

    python profiling/prefixes.py

Conversations: each turn sends all earlier ones, in every mode, greedy and sampled, with and without the cache; the tokens must
be the same. A saved token is a token of a prompt that was found, without those of the system prompt, which is the longest
common beginning of all first turns. The other two figures are for one engine in mode "ar".
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common.models import Models
from common.musts import Must, line
from common.options import add_flags
from common.results import PREFIXES, RESULTS, Row, settings_of, write_result
from common.workload import CHAT

from ssd import Completion, Engine, SamplingParams
from ssd.bench import machine
from ssd.kv.cache import PAGE_SIZE
from ssd.kv.prefix import PrefixCache, page_key, root_key
from ssd.native import PageAllocator

MODES = ("ar", "sd", "ssd")
SAVED = Must("tokens of prompts that are not stored again, the system prompt left out", at_least=0.7)
FIRST_TOKEN = Must("time to the first token after a known system prompt, over that without the cache", at_most=0.2)
LOOK_UP = Must("time of the look-up over that of the prefill that it saves", at_most=0.01)
EVICTION = Must("µs a page to hash, keep and drop one, in a cache of 100,000 pages", at_most=10)
WORDS = ("report", "member", "question", "point", "read", "open", "further", "no", "every", "this")


class Talk:
    """Conversations with an engine, a turn of all of them at a time."""

    def __init__(self, conversations: int) -> None:
        self.histories: list[list[dict[str, str]]] = [[] for _ in range(conversations)]
        self.first_prompts: list[list[int]] = []

    def turn(self, engine: Engine, params: SamplingParams, number: int) -> list[Completion]:
        for index, history in enumerate(self.histories):
            history.append({"role": "user", "content": f"{index}: {CHAT[(3 * index + number) % len(CHAT)]}"})
        completions = engine.decode(self.histories, params)
        for history, completion in zip(self.histories, completions, strict=True):
            history.append({"role": "assistant", "content": completion.text})
        return completions


def prompt_lengths(engine: Engine, histories: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    return [request.prompt for request in engine.requests(histories, SamplingParams(max_new_tokens=1), {})]


def converse(engine: Engine, params: SamplingParams, args: argparse.Namespace) -> tuple[list[Any], float]:
    """The tokens of all turns, and the share of the prompts' tokens that were found in the cache."""
    talk, tokens, found, sent, system = Talk(args.conversations), [], 0, 0, 0
    for number in range(args.turns):
        completions = talk.turn(engine, params, number)
        prompts = prompt_lengths(engine, [history[:-1] for history in talk.histories])
        if number == 0:
            system = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))))
        tokens.append([completion.token_ids for completion in completions])
        sent += sum(len(prompt) - system for prompt in prompts)
        found += sum(max(0, c.stats.cached_tokens - system // PAGE_SIZE * PAGE_SIZE) for c in completions)
    return tokens, found / sent


def conversations(models: Models, args: argparse.Namespace) -> Row:
    rows: Row = {}
    for mode in MODES:
        for name, params in {
            "greedy": SamplingParams(max_new_tokens=args.max_new_tokens),
            "sampled": SamplingParams(max_new_tokens=args.max_new_tokens, temperature=0.8, seed=1),
        }.items():
            seconds, tokens, saved = {}, {}, {}
            for caching in (True, False):
                with models.engine(mode, prefix_caching=caching, fallback="neural", threads=args.threads) as engine:
                    began = time.perf_counter()
                    tokens[caching], saved[caching] = converse(engine, params, args)
                    seconds[caching] = time.perf_counter() - began
            rows[f"{mode}, {name}"] = {
                "saved": saved[True],
                "identical": tokens[True] == tokens[False],
                "seconds": seconds[True],
                "seconds_without": seconds[False],
            }
            print(f"{mode}, {name}", rows[f"{mode}, {name}"], flush=True)
    return rows


def first_token(models: Models, args: argparse.Namespace) -> Row:
    """Medians of the time to the first token, in seconds, of questions after one long system prompt."""
    dice = random.Random(0)
    with models.engine("ar", threads=args.threads) as engine:
        system = " ".join(dice.choices(WORDS, k=args.system_tokens))
        while len(engine.requests([system], None, {"raw": True})[0].prompt) > args.system_tokens:
            system = system.rpartition(" ")[0]

        def asked(question: str) -> Completion:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            return engine.decode(messages, SamplingParams(max_new_tokens=1))

        times: dict[bool, list[float]] = {True: [], False: []}
        asked("Hello.")
        for question in CHAT:
            times[True].append(asked(question).stats.time_to_first_token_s)
            engine.core.scheduler.pages.clear()
            times[False].append(asked(question).stats.time_to_first_token_s)
    return {"seconds": median(times[True]), "seconds_without": median(times[False]), "all": times[True] + times[False]}


def look_up_seconds(tokens: int) -> float:
    """Median time to hash a prompt's pages, and find and hold them all."""
    dice = random.Random(0)
    prompt, pages = dice.choices(range(10**4), k=tokens), tokens // PAGE_SIZE
    cache = PrefixCache(PageAllocator(1 + pages))
    times = []
    for first in (True, *(False,) * 50):
        began = time.perf_counter()
        keys = [root_key("model", None)]
        for start in range(0, pages * PAGE_SIZE, PAGE_SIZE):
            keys.append(page_key(keys[-1], prompt[start : start + PAGE_SIZE]))
        found = cache.find(keys[1:])
        held = np.concatenate([cache.hold(found), cache.allocate(pages - len(found))])
        if not first:
            times.append(time.perf_counter() - began)
        cache.keep(keys[1:], held, pages)
        cache.release(held)
    return median(times)


def microseconds_a_page(pages: int = 100_000, length: int = 64) -> float:
    """Time to hash, keep and drop a page in a full cache."""
    cache, dice = PrefixCache(PageAllocator(1 + pages)), random.Random(0)
    texts = [dice.choices(range(10**4), k=length * PAGE_SIZE) for _ in range(2 * pages // length)]
    began = 0.0
    for number, text in enumerate(texts):
        if number == len(texts) // 2:
            assert cache.available - cache.kept < length  # full: from here on, each new page drops another
            began = time.perf_counter()
        keys = [root_key("model", str(number))]
        for start in range(0, len(text), PAGE_SIZE):
            keys.append(page_key(keys[-1], text[start : start + PAGE_SIZE]))
        held = cache.allocate(length)
        cache.keep(keys[1:], held, length)
        cache.release(held)
    assert cache.evictions >= pages - 2 * length
    return 1e6 * (time.perf_counter() - began) / (length * (len(texts) - len(texts) // 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20, help="number of conversations, all at once")
    parser.add_argument("--turns", type=int, default=6, help="turns of each")
    parser.add_argument("--system-tokens", type=int, default=1000, help="length of the long system prompt")
    add_flags(parser, "target", "draft", "dtype", "weights", "threads")
    add_flags(parser, max_new_tokens=48)
    parser.add_argument("--name", default=PREFIXES.what, help="name of the result file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = parser.parse_args()

    models = Models(args.target, args.draft, {"dtype": args.dtype, "weights": args.weights})
    rows = conversations(models, args)
    first = first_token(models, args)
    look_up, page = look_up_seconds(args.system_tokens), microseconds_a_page()
    musts = [
        SAVED.judged(min(row["saved"] for row in rows.values())),
        FIRST_TOKEN.judged(first["seconds"] / first["seconds_without"]),
        LOOK_UP.judged(look_up / first["seconds_without"]),
        EVICTION.judged(page),
    ]
    for must in musts:
        print(line(must))
    settings = settings_of(args, "results")
    settings["target"], settings["draft"] = (Path(name).name for name in (args.target, args.draft))
    result = {"what": args.name, "machine": machine.describe(), "settings": settings, PREFIXES.figures: rows, "musts": musts}
    print(write_result(result | {"first_token": first}, args.results))
    if not all(row["identical"] for row in rows.values()):
        raise SystemExit("the cache changed tokens.")


if __name__ == "__main__":
    main()
