"""`ssd plan`: the memory and the speed to expect of a target and its draft, before anything is decoded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from ssd.bench.text import NOTHING, figure, percent, size
from ssd.cli import options as o
from ssd.cli import outcomes
from ssd.cli.console import count_bar, figures_table, print_json, progress_bar
from ssd.cli.prompts import prompt_set
from ssd.fields import options_of
from ssd.options import EngineOptions, SamplingParams

if TYPE_CHECKING:
    from ssd.bench.sets import PromptSet
    from ssd.plan.plan import Plan
    from ssd.plan.prediction import Prediction
    from ssd.serving.loading import LoadedModels
    from ssd.simulate.outcomes import Outcomes
    from ssd.simulate.rounds import Setting

ENGINE = ("draft", "dtype", "weights", "device", "draft_device", "gpu_memory_utilization", "threads", "draft_threads")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")
HEADINGS = ("tokens/s a\nsequence", "over\nar", "ms a\nround", "hit\nrate", "break-\neven", "draft on a\ndevice of its own")


@o.takes(only=(*ENGINE, *SAMPLING), max_new_tokens=128)
def plan(
    model: o.Target = None,
    *,
    on: Annotated[
        str | None,
        o.option(
            "--on",
            help="Device that is described instead of measured here: a GPU's name, such as 'H100' or '4xH100', or "
            "'bandwidth=3350,memory=80' in GB/s and GB.",
            panel=o.PLAN,
            metavar="DEVICE",
        ),
    ] = None,
    draft_on: Annotated[
        str | None,
        o.option("--draft-on", help="Device of the draft's own, described like --on.", panel=o.PLAN, metavar="DEVICE"),
    ] = None,
    link: Annotated[
        float, o.option("--link", help="Microseconds of a message between the devices of --on and --draft-on.", panel=o.PLAN)
    ] = 10.0,
    context: Annotated[int, o.option("--context", help="Number of tokens of each sequence.", panel=o.PLAN)] = 2048,
    measure: Annotated[
        list[str] | None,
        o.option(
            "--measure",
            help="Prompts to decode for the outcomes: a built-in set of `ssd bench`, or a file with one JSON object a line; all "
            "built-in ones unless outcomes are given. May be given several times.",
            panel=o.PLAN,
            metavar="SET|FILE.jsonl",
        ),
    ] = None,
    field: Annotated[str, o.option("--field", help="Field of a file's lines that has the prompt.", panel=o.PLAN)] = "prompt",
    limit: Annotated[int, o.option("--limit", help="Largest number of prompts of a set; 0 takes all.", panel=o.PLAN)] = 4,
    result: Annotated[
        Path | None,
        o.option("--outcomes", help="Result of `ssd bench` that gives the outcomes.", panel=o.PLAN, metavar="RESULT.json"),
    ] = None,
    acceptance: outcomes.Acceptance = None,
    first_miss: outcomes.FirstMiss = None,
    decay: outcomes.Decay = None,
    lookahead: outcomes.Lookaheads = "2,4,6",
    budget: outcomes.Budgets = "4,8,16",
    batch: Annotated[
        str, o.option("--batch", help="Numbers of sequences at once, with commas.", panel=o.SIMULATED, metavar="N,N,..")
    ] = "1",
    options: EngineOptions,
    params: SamplingParams,
    as_json: o.Json = False,
) -> None:
    """Predict memory and speed of each mode: measured passes of this machine, or a described device."""
    lookaheads, budgets, batches = (
        outcomes.numbers(name, text) for name, text in (("lookahead", lookahead), ("budget", budget), ("batch", batch))
    )
    if context < 1 or not 0 <= link < 1e6 or limit < 0:
        raise o.WrongUsage("context must be at least 1, link from 0 to 10^6 microseconds, and limit 0 or more.")
    law = (acceptance, first_miss, decay)
    given = result is not None or any(value is not None for value in law)
    if measure and (given or on is not None):
        raise o.WrongUsage("--measure decodes on this machine; leave out --on and other outcomes.")
    if on is None and draft_on is not None:
        raise o.WrongUsage("--draft-on describes a device beside --on; give both.")

    from ssd.plan.plan import load_pair, plan_described, plan_here
    from ssd.simulate.rounds import grid

    options = replace(options, target=o.target_of(model, options) or options.target)
    settings = [each for size in batches for each in grid(lookaheads, budgets, size)]
    if on is not None:
        from ssd.plan.devices import described

        drawn = outcomes.outcomes_of(result, max(budgets), *law) if given else _assumed(options, max(budgets))
        devices = described(on), described(draft_on) if draft_on is not None else None
        found = plan_described(options, *devices, link, context, settings, *drawn)
    else:
        from ssd.bench.sets import BUILT_IN

        sets = [] if given else [prompt_set(each, field, limit) for each in measure or BUILT_IN]
        with progress_bar(f"Loading {options.target}") as on_load:
            models = load_pair(options, settings, on_load)
        if given:
            drawn = outcomes.outcomes_of(result, max(budgets), *law)
        else:
            drawn = _measured(models, options, sets, params, max(lookaheads), max(budgets))
        with count_bar("Measuring passes") as on_run:
            found = plan_here(models, options, context, settings, *drawn, on_run)
    described_devices = () if on is None else ("cuda",) if draft_on is None else ("cuda:0", "cuda:1")
    command = _command(options, found.fastest, described_devices) if found.fastest else None
    if as_json:
        print_json(_document(found, command))
    else:
        _show(found, batches, command)


def _assumed(options: EngineOptions, guesses: int) -> tuple[Outcomes, str]:
    """From the report that came with the draft, if there is one."""
    from ssd.plan.prediction import outcomes_of_draft

    reported = outcomes_of_draft(options.draft, options.target, guesses)
    if reported is not None:
        return reported, "acceptance from the draft's own report, hits assumed"
    return outcomes.outcomes_of(None, guesses, None, None, None)


def _measured(
    models: LoadedModels,
    options: EngineOptions,
    sets: Sequence[PromptSet],
    params: SamplingParams,
    lookahead: int,
    budget: int,
) -> tuple[Outcomes, str]:
    """By a decode of these sets."""
    from ssd.plan.prediction import measured_outcomes

    prompts = [prompt for each in sets for prompt in each.prompts]
    drawn = measured_outcomes(models, options, prompts, params, lookahead, budget)
    return drawn, f"measured on {len(prompts)} prompts: {', '.join(each.name for each in sets)}"


# In words --------------------------------------------------------------------------------------------------------------------


def _document(found: Plan, command: str | None) -> dict[str, Any]:
    from ssd.bench.results import FORMAT

    return {
        "what": "plan",
        "format": FORMAT,
        "memory": dict(found.memory),
        "sequences_that_fit": found.room,
        "outcomes": asdict(found.outcomes) | {"source": found.source},
        "rows": [asdict(each.simulated) | {"apart_tokens_per_s": each.apart} for each in found.predictions],
        "assumptions": found.assumptions,
        "engine": found.footprint,
        "command": command,
    }


def _show(found: Plan, batches: Sequence[int], command: str | None) -> None:
    from ssd.plan.prediction import fastest_of

    console = Console(highlight=False)
    for name, value in found.memory:
        console.print(f"{name:<16}{value}")
    for batch in batches:
        room = found.room.get(batch, 0)
        console.print(f"{f'batch {batch}':<16}{'fits' if room >= batch else 'does not fit'}: room for {room} sequences")
    for batch in batches:
        rows = [each for each in found.predictions if each.setting.batch == batch]
        fastest = fastest_of(rows)
        table = figures_table(f"predicted, batch {batch}", "setting", HEADINGS)
        for each in rows:
            table.add_row(each.simulated.name, *_cells(each, rows[0]), style="bold" if each.setting == fastest else None)
        console.print(table)
    for sentence in (*outcomes.told(found.outcomes, found.source), *found.assumptions):
        console.print(sentence)
    if found.footprint is not None:
        _show_engine(console, found.footprint)
    if command is not None:
        console.print(f"\nThe fastest of these that fit:\n  {command}", soft_wrap=True)


def _cells(each: Prediction, ar: Prediction) -> list[str]:
    ran = each.simulated
    even = NOTHING if each.setting.mode != "ssd" else percent(ran.break_even) if ran.break_even is not None else "never"
    return [
        figure(ran.tokens_per_s),
        figure(ran.tokens_per_s / ar.simulated.tokens_per_s, digits=2),
        figure(ran.round_ms, digits=2),
        percent(ran.hit_rate),
        even,
        figure(each.apart),
    ]


def _show_engine(console: Console, found: dict[str, Any]) -> None:
    """An engine with the fastest setting."""
    on_cpu = f", {found['threads']} threads" if found["device"] == "cpu" else ""
    lines = [
        ("engine", f"mode {found['mode']} on {found['device']}, {found['dtype']}{on_cpu}"),
        ("K/V", f"{found['kv_pages']} pages of {found['kv_page_tokens']} tokens, {size(found['kv_bytes'])}"),
        ("rounds", "as graphs" if found["rounds"] == "graphs" else found["rounds"]),
    ]
    if found["recorded"]:
        cost = f"{found['recording_seconds']:.1f} s, {size(found['recording_bytes'])}"
        sizes = ", ".join(map(str, found["batch_sizes"]))
        lines.append(("recorded", f"{found['recorded']} programs, for batches of {sizes}: {cost}"))
    console.print()
    for name, value in lines:
        console.print(f"{name:<16}{value}")


def _command(options: EngineOptions, setting: Setting, described: Sequence[str]) -> str:
    """described: devices of the target, and of a draft that has its own, where they were described and not given."""
    words = ["ssd", "serve", options.target, "--mode", setting.mode, "--max-batch", str(setting.batch)]
    if setting.mode != "ar":
        words += ["--lookahead", str(setting.lookahead)]
    if setting.mode == "ssd":
        words += ["--budget", str(setting.budget)]
    places: dict[str, Any] = dict(zip(("device", "draft_device"), described, strict=False))
    options = replace(options, **places)
    for name in ENGINE:
        of_draft = name.startswith("draft")
        if getattr(options, name) != getattr(EngineOptions, name) and not (of_draft and setting.mode == "ar"):
            words += [options_of(EngineOptions)[name].flag, str(getattr(options, name))]
    return shlex.join(words)
