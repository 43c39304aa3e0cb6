"""`ssd bench`: modes and settings decode the same prompts in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from ssd.bench.text import NOTHING, figure, percent
from ssd.cli import options as o
from ssd.cli.console import INTERRUPTED, count_bar, figures_table, print_json, say
from ssd.cli.prompts import prompt_set
from ssd.options import EngineOptions, SamplingParams

HEADINGS = ("tokens/s", "over the first", "tokens\na round", "hit\nrate", "of the\nfloor", "same\ntokens")


@o.takes(without=("logprobs", "pace"), max_batch=1, max_new_tokens=128)
def bench(
    model: o.Target = None,
    *,
    prompts: Annotated[
        list[str] | None,
        o.option(
            "--prompts",
            help="Set of prompts: 'code', 'maths', 'chat', 'summary', 'fiction', or a file with one JSON object a line; all five "
            "unless given. May be given several times.",
            panel=o.BENCH,
            metavar="SET|FILE.jsonl",
        ),
    ] = None,
    field: Annotated[str, o.option("--field", help="Field of a file's lines that has the prompt.", panel=o.BENCH)] = "prompt",
    limit: Annotated[int, o.option("--limit", help="Largest number of prompts of a set; 0 takes all.", panel=o.BENCH)] = 8,
    sweep: Annotated[
        list[str] | None,
        o.option(
            "--sweep",
            help="An option and the values to measure it with, such as 'lookahead=2,4' or 'tree=3,2/2,2,1'; of several sweeps, every "
            "combination is measured. May be given several times. The mode is swept unless it is given.",
            panel=o.BENCH,
            metavar="NAME=V,V,..",
        ),
    ] = None,
    runs: Annotated[int, o.option("--runs", help="Number of times that each variant decodes each set.", panel=o.BENCH)] = 3,
    peer: Annotated[
        list[str] | None,
        o.option(
            "--peer",
            help="Another engine: a command, in which {prompts} becomes a file and {tokens} a number, and whose last line is a JSON "
            "object with decode_tokens_per_s_median. May be given several times.",
            panel=o.BENCH,
            metavar="NAME=COMMAND",
        ),
    ] = None,
    out: Annotated[
        Path,
        o.option(
            "--out",
            help="New file for the result; FILE.partial keeps what is measured until then.",
            panel=o.BENCH,
            metavar="FILE",
        ),
    ] = Path("ssd-bench.json"),
    options: EngineOptions,
    params: SamplingParams,
    as_json: o.Json = False,
) -> None:
    """Measure modes and settings in turn. A benchmark that was interrupted goes on when the same command is given again."""
    if runs < 1 or limit < 0:
        raise o.WrongUsage(f"runs is {runs} and limit {limit}; give at least 1 run, and a limit of 0 or more.")
    from ssd.bench.sets import BUILT_IN

    sets = [prompt_set(each, field, limit) for each in prompts or BUILT_IN]
    if len({each.name for each in sets}) < len(sets):
        raise o.WrongUsage("two sets of prompts have the same name; rename a file.")
    peers = dict(map(_peer, peer or []))

    from ssd.bench.run import Benchmark, measure
    from ssd.bench.variants import variants_of

    target = o.target_of(model, options)
    variants = variants_of(replace(options, target=target or options.target), params, sweep or [])
    done = 0
    with count_bar(f"Measuring {len(variants)} variants") as show:

        def on_turn(turns: int, of: int) -> None:
            nonlocal done
            done = turns
            show(turns, of)

        try:
            result = measure(Benchmark(variants, sets, runs, peers), out, on_turn)
        except KeyboardInterrupt:
            say(f"interrupted after {done} turns, which are kept in {out}.partial; the same command goes on.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(result)
    else:
        _show(result)
        say(f"the result is in {out}.")


def _peer(text: str) -> tuple[str, str]:
    name, equals, command = text.partition("=")
    if not equals or not name or not command.strip():
        raise o.WrongUsage(f"the peer is {text!r}; give its name and command, such as 'other=python other.py {{prompts}}'.")
    return name, command


def _show(result: dict[str, Any]) -> None:
    """A table for each set, and one for all: the variants, then the peers."""
    console = Console(highlight=False)
    for name in dict.fromkeys(each["set"] for each in result["figures"]):
        table = figures_table(name, "variant", HEADINGS)
        for each in result["figures"]:
            if each["set"] == name:
                table.add_row(each["variant"], *_cells(each))
        for each in result["peer_figures"]:
            if each["set"] == name:
                table.add_row(each["peer"], figure(median(each["decode_tokens_per_s"])), *[NOTHING] * (len(HEADINGS) - 1))
        console.print(table)


def _cells(each: dict[str, Any]) -> list[str]:
    """Beside a ratio is its 95 % interval."""
    over, identical = each["over_first"], each["identical"]
    return [
        figure(each["decode_tokens_per_s"]["median"]),
        f"{over['mean']:.2f} ({over['interval'][0]:.2f} to {over['interval'][1]:.2f})" if over else NOTHING,
        figure(each["tokens_per_round"], "", 2),
        percent(each["hit_rate"]),
        percent(each["verify_fraction_of_floor"]),
        NOTHING if identical is None else "yes" if identical else "no",
    ]
