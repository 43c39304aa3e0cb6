"""`ssd decode`: prompts in, text or JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ssd.cli import options as o
from ssd.cli.console import NOTHING, figure, percent, print_json
from ssd.errors import SsdError
from ssd.options import EngineConfig, SamplingParams, SpeculationConfig

if TYPE_CHECKING:
    from ssd.decoding.stats import Stats
    from ssd.engine import Engine
    from ssd.requests import Completion


def decode(
    prompt: Annotated[str | None, typer.Argument(help="One user message; '-' reads it from stdin.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        o.option(
            "--prompts",
            help="Decode the prompts of this file together, one JSON object a line.",
            panel="Prompts",
            metavar="FILE.jsonl",
        ),
    ] = None,
    field: Annotated[
        str, o.option("--field", help="Where a line has its prompt: text, or a list that begins with it.", panel="Prompts")
    ] = "prompt",
    raw: Annotated[
        bool, o.option("--raw", help="Continue the prompt as it is, without the model's chat template.", panel="Prompts")
    ] = False,
    target: o.Target = "smollm2-135m",
    draft: o.Draft = "auto",
    mode: o.Mode = EngineConfig.mode,
    lookahead: o.Lookahead = SpeculationConfig.lookahead,
    budget: o.Budget = SpeculationConfig.budget,
    fan_out: Annotated[
        str,
        o.option(
            "--fan-out",
            help="How accepted counts share the budget: 'measured', 'geometric', 'uniform', or a number for each of 0 to lookahead.",
            panel=o.SPECULATION,
            metavar="NAME|N,N,..",
        ),
    ] = str(SpeculationConfig.fan_out),
    fallback: Annotated[
        str, o.option("--fallback", help="What a miss gets: 'neural', 'ngram', or 'auto'.", panel=o.SPECULATION)
    ] = SpeculationConfig.fallback,
    saguaro_c: Annotated[
        float,
        o.option(
            "--saguaro-c", help="Draw the draft's likeliest tokens with their probability times this.", panel=o.SPECULATION
        ),
    ] = SpeculationConfig.saguaro_c,
    saguaro_f: Annotated[
        int | None, o.option("--saguaro-f", help="How many tokens --saguaro-c is for.", panel=o.SPECULATION)
    ] = SpeculationConfig.saguaro_f,
    tree: Annotated[
        str | None,
        o.option(
            "--tree",
            help="Draft a tree, with so many children a node, level by level; with --mode sd.",
            panel=o.SPECULATION,
            metavar="N,N,..",
        ),
    ] = None,
    temperature: Annotated[
        float, o.option("--temperature", "-t", help="0 is greedy.", panel=o.SAMPLING)
    ] = SamplingParams.temperature,
    top_k: Annotated[
        int, o.option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.", panel=o.SAMPLING)
    ] = SamplingParams.top_k,
    top_p: Annotated[
        float, o.option("--top-p", help="Keep the likeliest tokens that reach this probability.", panel=o.SAMPLING)
    ] = SamplingParams.top_p,
    min_p: Annotated[
        float, o.option("--min-p", help="Keep tokens at least this fraction as likely as the likeliest.", panel=o.SAMPLING)
    ] = SamplingParams.min_p,
    max_new_tokens: o.MaxNewTokens = SamplingParams.max_new_tokens,
    stop: Annotated[
        list[str] | None,
        o.option("--stop", help="End the text before this string; may be given several times.", panel=o.SAMPLING),
    ] = None,
    ignore_eos: Annotated[
        bool, o.option("--ignore-eos", help="Go on behind an end-of-sequence token.", panel=o.SAMPLING)
    ] = False,
    logprobs: Annotated[
        int,
        o.option("--logprobs", help="With --json: log-probabilities of each token and of the n likeliest.", panel=o.SAMPLING),
    ] = SamplingParams.logprobs,
    seed: Annotated[int, o.option("--seed", help="Of all that is drawn.", panel=o.SAMPLING)] = EngineConfig.seed,
    dtype: o.Dtype = EngineConfig.dtype,
    threads: o.Threads = None,
    draft_threads: o.DraftThreads = None,
    device: o.Device = EngineConfig.device,
    draft_device: o.DraftDevice = None,
    draft_sms: o.DraftSms = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = EngineConfig.gpu_memory_utilization,
    max_batch: o.MaxBatch = EngineConfig.max_batch,
    max_context: o.MaxContext = None,
    pace: o.Pace = None,
    as_json: Annotated[
        bool, o.option("--json", help="Print a JSON object for each prompt, one a line.", panel=o.OUTPUT)
    ] = False,
    stats: Annotated[bool, o.option("--stats", help="Print on stderr what the decode cost.", panel=o.OUTPUT)] = False,
    trace: o.Trace = None,
) -> None:
    """Decode a prompt, or a file of prompts. The text goes to stdout, as it is made where there is one prompt."""
    texts = _prompts(prompt, prompts, field)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        max_new_tokens=max_new_tokens,
        stop=tuple(o.check_text(text, "a stop string") for text in stop or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    engine_options: dict[str, Any] = {
        "target": target,
        "draft": o.parse_draft(draft),
        "mode": mode,
        "lookahead": lookahead,
        "budget": budget,
        "fan_out": o.parse_fan_out(fan_out),
        "fallback": fallback,
        "saguaro_c": saguaro_c,
        "saguaro_f": saguaro_f,
        "tree": o.parse_tree(tree),
        "dtype": dtype,
        "threads": threads,
        "draft_threads": draft_threads,
        "device": device,
        "draft_device": draft_device,
        "draft_sms": draft_sms,
        "gpu_memory_utilization": gpu_memory_utilization,
        "max_batch": max_batch,
        "max_context": max_context,
        "pace": o.parse_pace(pace),
        "seed": seed,
    }
    o.check_writable(trace)
    with o.loaded_engine(f"Loading {target}", **engine_options) as engine, _recording(engine, trace):
        if prompt is not None and not as_json:
            completions = [_stream(engine, texts[0], params, raw)]
        else:
            completions = engine.decode(texts, params, raw=raw)
            _print(completions, as_json)
    if stats:
        _print_stats(completions)


def _prompts(prompt: str | None, path: Path | None, field: str) -> list[str]:
    if (prompt is None) == (path is None):
        raise o.WrongUsage("give a prompt ('-' reads it from stdin) or --prompts FILE.jsonl, one of the two.")
    if path is not None:
        return list(read_prompts(path, field))
    assert prompt is not None
    if prompt != "-":
        return [o.check_text(prompt, "the prompt")]
    try:
        return [sys.stdin.read().removesuffix("\n")]
    except UnicodeDecodeError:
        raise SsdError("the prompt on stdin is not valid Unicode text; give it as UTF-8.") from None


def read_prompts(path: Path, field: str) -> Iterator[str]:
    """The prompts of a file with one JSON object a line. Raises SsdError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise SsdError(f"the prompts in {path} cannot be read ({error.strerror}); check the name.") from None
    except UnicodeDecodeError:
        raise SsdError(f"{path} is not UTF-8 text; give a file with one JSON object a line.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise SsdError(f"{path} is empty; give a file with one JSON object a line.")
    for number, line in numbered:
        yield o.check_text(_prompt_of(line, field, f"line {number} of {path}"), f"the prompt on line {number} of {path}")


def _prompt_of(line: str, field: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise SsdError(f"{where} is not JSON; give one JSON object a line.") from None
    if not isinstance(entry, dict):
        raise SsdError(f"{where} is not a JSON object; give one with the field {field!r} on each line.")
    if field not in entry:
        raise SsdError(f"{where} has no field {field!r}; choose one of {', '.join(map(repr, entry)) or 'none'} with --field.")
    value = entry[field]
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise SsdError(
            f"the field {field!r} on {where} is neither text nor a list that begins with text; choose another with --field."
        )
    return value


@contextmanager
def _recording(engine: Engine, path: Path | None) -> Iterator[None]:
    """Write the timeline of the block, also of one that was cut short."""
    if path is None:
        yield
        return
    engine.trace.record()
    try:
        yield
    finally:
        engine.trace.write(path)


def _stream(engine: Engine, prompt: str, params: SamplingParams, raw: bool) -> Completion:
    stream = engine.stream(prompt, params, raw=raw)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    assert stream.completion is not None
    return stream.completion


def _print(completions: list[Completion], as_json: bool) -> None:
    for index, completion in enumerate(completions):
        if as_json:
            print_json(asdict(completion))
        else:
            print(completion.text if index == 0 else f"\n{completion.text}")


def _print_stats(completions: list[Completion]) -> None:
    console = Console(stderr=True, highlight=False)
    for number, completion in enumerate(completions, 1):
        table = Table(title=f"prompt {number}" if len(completions) > 1 else None, show_header=False)
        for name, value in _stat_rows(completion.stats, len(completion.token_ids)):
            table.add_row(name, value)
        console.print(table)


def _counts(counts: dict[int, int], most: int | None = None) -> str:
    """The first `most` of them, by key, and the sum of the rest."""
    shown = [f"{key}: {count}" for key, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[len(shown) :])
    return ", ".join([*shown, f"beyond: {rest}"] if rest else shown) or NOTHING


def _stat_rows(stats: Stats, tokens: int) -> list[tuple[str, str]]:
    """The stats in words; see `ssd.decoding.stats.Stats` for what each is."""
    rows = [
        ("mode", stats.mode),
        ("tokens", str(tokens)),
        ("tokens/s, behind the first", figure(stats.decode_tokens_per_s)),
        ("until the first token", figure(stats.time_to_first_token_s, " s", 2)),
        ("rounds", str(stats.rounds)),
        ("verification", figure(stats.t_verify_ms, " ms")),
    ]
    if stats.mode != "ar":
        rows += [
            ("draft tokens accepted a round", figure(stats.accepted_per_round, "", 2)),
            ("acceptance", percent(stats.acceptance_rate)),
            ("rounds that accepted a 1st, 2nd, .. token", ", ".join(map(str, stats.accepted_at)) or NOTHING),
            ("rounds, by tokens proposed", _counts(stats.proposed_counts)),
            ("drafting", figure(stats.t_draft_ms, " ms")),
        ]
    if stats.mode == "ssd":
        per_k = ", ".join(f"{k}: {hits} of {look_ups}" for k, (hits, look_ups) in stats.hits_per_k.items())
        rows += [
            ("drafting hidden by verification", figure(stats.hidden_draft_ms, " ms")),
            ("hit rate", percent(stats.hit_rate)),
            ("hits, by accepted count", per_k or NOTHING),
            ("next tokens, by rank among the guesses", _counts(stats.rank_counts, 8)),
            ("what a miss cost", figure(stats.t_fallback_ms, " ms")),
            ("branches never used", str(stats.branches_unused)),
        ]
    return rows
