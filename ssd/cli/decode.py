"""`ssd decode`: prompts in, text or JSON out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ssd.bench.text import NOTHING, figure, percent
from ssd.cli import options as o
from ssd.cli.console import print_json
from ssd.cli.prompts import parse_variables, read_prompts, read_tools
from ssd.errors import SsdError
from ssd.options import EngineOptions, SamplingParams

if TYPE_CHECKING:
    from ssd.decoding.stats import Stats
    from ssd.engine import Engine
    from ssd.models.prompts import Prompt, PromptForm
    from ssd.requests import Completion


@o.takes()
def decode(
    prompt: Annotated[str | None, typer.Argument(help="One user message; '-' reads it from stdin.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        o.option(
            "--prompts",
            help="File of prompts to decode together, one JSON object a line.",
            panel=o.PROMPTS,
            metavar="FILE.jsonl",
        ),
    ] = None,
    field: Annotated[
        str,
        o.option(
            "--field",
            help="Field of a line that has its prompt: text, a list that begins with text, or a list of messages.",
            panel=o.PROMPTS,
        ),
    ] = "prompt",
    raw: Annotated[
        bool, o.option("--raw", help="Continuation of the prompt as it is, without the model's chat template.", panel=o.PROMPTS)
    ] = False,
    tools: Annotated[
        Path | None,
        o.option(
            "--tools",
            help="File of functions that the model may ask for: a JSON list of their schemas.",
            panel=o.PROMPTS,
            metavar="FILE.json",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        o.option(
            "--chat-template-kwargs",
            help="Variables of the model's chat template, as a JSON object.",
            panel=o.PROMPTS,
            metavar="JSON",
        ),
    ] = None,
    *,
    options: EngineOptions,
    params: SamplingParams,
    as_json: Annotated[
        bool, o.option("--json", help="Output as JSON objects, one a line for each prompt.", panel=o.OUTPUT)
    ] = False,
    stats: Annotated[bool, o.option("--stats", help="Statistics of the decode, on stderr.", panel=o.OUTPUT)] = False,
    trace: o.Trace = None,
) -> None:
    """Decode a prompt, or a file of prompts. The text of a single prompt goes to stdout while it is generated."""
    given = _prompts(prompt, prompts, field)
    form: PromptForm = {
        "raw": raw,
        "tools": read_tools(tools),
        "chat_template_kwargs": parse_variables("--chat-template-kwargs", chat_template_kwargs),
    }
    o.check_writable(trace)
    with o.loaded_engine(f"Loading {options.target}", options) as engine, _recording(engine, trace):
        if prompt is not None and not as_json:
            completions = [_stream(engine, given[0], params, form)]
        else:
            completions = engine.decode(given, params, **form)
            _print(completions, as_json)
    if stats:
        _print_stats(completions)
    for index, completion in enumerate(completions):
        if completion.error is not None:
            raise SsdError(
                f"prompt {index} of {len(completions)}: {completion.error}" if len(completions) > 1 else completion.error
            )


def _prompts(prompt: str | None, path: Path | None, field: str) -> list[Prompt]:
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


@contextmanager
def _recording(engine: Engine, path: Path | None) -> Iterator[None]:
    """Write the timeline of the block, even when an error or an interrupt ends it."""
    if path is None:
        yield
        return
    engine.trace.record()
    try:
        yield
    finally:
        engine.trace.write(path)


def _stream(engine: Engine, prompt: Prompt, params: SamplingParams, form: PromptForm) -> Completion:
    stream = engine.stream(prompt, params, **form)
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
    """The first `most` counts by key, and the sum of the rest."""
    shown = [f"{key}: {count}" for key, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[len(shown) :])
    return ", ".join([*shown, f"beyond: {rest}"] if rest else shown) or NOTHING


def _stat_rows(stats: Stats, tokens: int) -> list[tuple[str, str]]:
    """The statistics in words; `ssd.decoding.stats.Stats` explains each."""
    rows = [
        ("mode", stats.mode),
        ("tokens", str(tokens)),
        ("tokens/s, after the first", figure(stats.decode_tokens_per_s)),
        ("time to first token", figure(stats.time_to_first_token_s, " s", 2)),
        ("prompt tokens found in the prefix cache", str(stats.cached_tokens)),
        ("rounds", str(stats.rounds)),
        ("verification", figure(stats.t_verify_ms, " ms")),
    ]
    if stats.mode != "ar":
        rows += [
            ("mean acceptance length, with the bonus token", figure(stats.mean_acceptance_length, "", 2)),
            ("draft tokens accepted per round", figure(stats.accepted_per_round, "", 2)),
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
            ("cost of a miss", figure(stats.t_fallback_ms, " ms")),
            ("branches never used", str(stats.branches_unused)),
        ]
    return rows
