"""`ssd plan`: the memory and the speed to expect of a target and its draft, before anything is decoded."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from ssd.bench.text import NOTHING, figure, percent
from ssd.cli import options as o
from ssd.cli import outcomes
from ssd.cli.console import count_bar, figures_table, print_json, progress_bar
from ssd.cli.prompts import prompt_set
from ssd.errors import SsdError, one_line
from ssd.options import EngineOptions, SamplingParams

if TYPE_CHECKING:
    from ssd.bench.sets import PromptSet
    from ssd.plan.prediction import Prediction
    from ssd.serving.loading import LoadedModels
    from ssd.simulate.outcomes import Outcomes
    from ssd.simulate.rounds import Setting

ENGINE = ("draft", "dtype", "weights", "device", "draft_device", "gpu_memory_utilization", "threads", "draft_threads")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")
HEADINGS = ("tokens/s a\nsequence", "over\nar", "ms a\nround", "hit\nrate", "break-\neven", "draft on a\ndevice of its own")


@dataclass
class Plan:
    """What was found. memory: lines of (what, how much). room: batch → sequences that fit. footprint: of an engine with the
    fastest setting, where one was made."""

    memory: list[tuple[str, str]]
    room: dict[int, int]
    predictions: list[Prediction]
    drawn: Outcomes
    source: str
    assumptions: list[str]
    footprint: dict[str, Any] | None = None


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

    from ssd.simulate.rounds import grid

    options = replace(options, target=o.target_of(model, options) or options.target)
    settings = [each for size in batches for each in grid(lookaheads, budgets, size)]
    if on is not None:
        drawn = outcomes.outcomes_of(result, max(budgets), *law) if given else _assumed(options, max(budgets))
        found = _described(options, on, draft_on, link, context, settings, drawn)
    elif given:
        drawn = outcomes.outcomes_of(result, max(budgets), *law)
        found = _here(options, context, settings, lambda models: drawn)
    else:
        from ssd.bench.sets import BUILT_IN

        sets = [prompt_set(each, field, limit) for each in measure or BUILT_IN]
        found = _here(options, context, settings, partial(_measured, options, sets, params, max(lookaheads), max(budgets)))
    fitting = [each for each in found.predictions if found.room.get(each.setting.batch, 0) >= each.setting.batch]
    command = _command(options, fastest_of(fitting), draft_on is not None) if fitting else None
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
    options: EngineOptions,
    sets: Sequence[PromptSet],
    params: SamplingParams,
    lookahead: int,
    budget: int,
    models: LoadedModels,
) -> tuple[Outcomes, str]:
    from ssd.plan.prediction import measured_outcomes

    prompts = [prompt for each in sets for prompt in each.prompts]
    drawn = measured_outcomes(models, options, prompts, params, lookahead, budget)
    return drawn, f"measured on {len(prompts)} prompts: {', '.join(each.name for each in sets)}"


def fastest_of(predictions: Sequence[Prediction]) -> Setting:
    """The setting with the most tokens/s of all sequences together."""
    return max(predictions, key=lambda each: each.simulated.tokens_per_s * each.setting.batch).setting


# Measured here ---------------------------------------------------------------------------------------------------------------


def _here(
    options: EngineOptions,
    context: int,
    settings: Sequence[Setting],
    outcomes_from: Callable[[LoadedModels], tuple[Outcomes, str]],
) -> Plan:
    from ssd.engine import Engine
    from ssd.models.registry import draft_named
    from ssd.plan.calibration import calibrate, engine_options
    from ssd.plan.prediction import predict, sequences_that_fit, times_apart
    from ssd.runtime.placement import memory_for_kv, place
    from ssd.serving.loading import load_models

    if draft_named(options.draft, options.target) in (None, "ngram"):
        raise SsdError(f"{options.target!r} has no draft model; name one with --draft, for example 'self:2'.")
    largest = max(settings, key=lambda each: (each.lookahead, each.budget, each.batch))
    options = replace(options, mode="ssd")
    widest = replace(options, speculation_options=replace(options.speculation_options, lookahead=largest.lookahead))
    began = time.perf_counter()
    with progress_bar(f"Loading {options.target}") as progress:
        models = load_models(widest, placement := place(widest), progress)
    seconds = time.perf_counter() - began
    if models.draft_error is not None or models.draft is None:
        raise SsdError(
            f"the draft cannot be used ({one_line(models.draft_error or ValueError('none'))}); nothing was measured."
        )
    drawn, source = outcomes_from(models)
    with count_bar("Measuring passes") as bar:
        calibrated = calibrate(models, options, settings, bar)
    predictions = predict(settings, drawn, {each: own.times for each, own in calibrated.items()}, times_apart(calibrated))
    target, draft = models.target.model, models.draft.model
    elsewhere = placement.draft_device != placement.target_device
    memory = memory_for_kv(options, placement.target_device)
    draft_memory = memory_for_kv(options, placement.draft_device) if elsewhere else None
    tokens = min(context, models.target.context)
    room = {
        each.batch: sequences_that_fit(engine_options(options, each), target, draft, each.budget, memory, draft_memory, tokens)
        for each in settings
    }
    with Engine.of(models.target, models.draft, engine_options(options, fastest_of(predictions))) as engine:
        footprint = asdict(engine.footprint) | {"load_seconds": seconds}
    sizes = [
        ("target", f"a pass reads {_size(target.weight_bytes())} of weights"),
        ("draft", f"a pass reads {_size(draft.weight_bytes())} of weights"),
        ("room for K/V", f"{_size(memory)}" + (f", and {_size(draft_memory)} on the draft's device" if draft_memory else "")),
    ]
    assumptions = [
        f"Times are measured here, with random prompts; {tokens} tokens a sequence count for memory only.",
        "With a device of its own, the draft takes none of the target's bandwidth and cores; exchange as here.",
    ]
    return Plan(sizes, room, predictions, drawn, source, assumptions, footprint)


# Described -------------------------------------------------------------------------------------------------------------------


def _described(
    options: EngineOptions,
    on: str,
    draft_on: str | None,
    link: float,
    context: int,
    settings: Sequence[Setting],
    given: tuple[Outcomes, str],
) -> Plan:
    import torch

    from ssd.models.registry import draft_named
    from ssd.plan.calibration import engine_options
    from ssd.plan.devices import assumptions, described, times
    from ssd.plan.models import PlannedModel, planned_draft
    from ssd.plan.prediction import predict, sequences_that_fit

    device, own = described(on), described(draft_on) if draft_on is not None else None
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    target = PlannedModel.named(options.target, dtype, options.weights)
    name = draft_named(options.draft, options.target)
    if name in (None, "ngram"):
        raise SsdError(f"{options.target!r} has no draft model; name one with --draft, for example 'self:2'.")
    draft = planned_draft(str(name), target, options.weights)
    second = own or replace(device, count=1)
    shared = {each: times(each, target, draft, device, own, context, link / 1e6) for each in settings}
    apart = {each: times(each, target, draft, device, second, context, link / 1e6) for each in settings if each.mode == "ssd"}
    predictions = predict(settings, given[0], shared, {} if own else apart)
    used = options.gpu_memory_utilization
    memory = used * device.memory * device.count - target.stored_bytes - (0 if own else draft.stored_bytes)
    draft_memory = used * own.memory * own.count - draft.stored_bytes if own else None
    room = {
        each.batch: sequences_that_fit(engine_options(options, each), target, draft, each.budget, memory, draft_memory, context)
        for each in settings
        if memory > 0 and (draft_memory is None or draft_memory > 0)
    }
    sizes = [
        (title, f"{_size(each.stored_bytes)} of weights, of which a pass reads {_size(each.pass_bytes)}; "
                f"K/V {each.kv_bytes_a_token / 1e6:.2f} MB a token; on {place.count} × {place.name} with {_size(place.memory)} each")
        for title, each, place in (("target", target, device), ("draft", draft, second if own else device))
    ]  # fmt: skip
    sizes.append(("room for K/V", _size(memory) if memory > 0 else f"none: {_size(-memory)} are missing"))
    if draft_memory is not None:
        sizes.append(("the draft's", _size(draft_memory) if draft_memory > 0 else f"none: {_size(-draft_memory)} are missing"))
    return Plan(sizes, room, predictions, *given, assumptions(device, own, link, context, used))


# In words --------------------------------------------------------------------------------------------------------------------


def _document(found: Plan, command: str | None) -> dict[str, Any]:
    from ssd.bench.results import FORMAT

    return {
        "what": "plan",
        "format": FORMAT,
        "memory": dict(found.memory),
        "sequences_that_fit": found.room,
        "outcomes": asdict(found.drawn) | {"source": found.source},
        "rows": [asdict(each.simulated) | {"apart_tokens_per_s": each.apart} for each in found.predictions],
        "assumptions": found.assumptions,
        "engine": found.footprint,
        "command": command,
    }


def _show(found: Plan, batches: Sequence[int], command: str | None) -> None:
    console = Console(highlight=False)
    for name, value in found.memory:
        console.print(f"{name:<16}{value}")
    for batch in batches:
        room = found.room.get(batch, 0)
        console.print(f"{f'batch {batch}':<16}{'fits' if room >= batch else 'does not fit'}: room for {room} sequences")
    for batch in batches:
        rows = [each for each in found.predictions if each.setting.batch == batch]
        fastest = max(rows, key=lambda each: each.simulated.tokens_per_s)
        table = figures_table(f"predicted, batch {batch}", "setting", HEADINGS)
        for each in rows:
            table.add_row(each.simulated.name, *_cells(each, rows[0]), style="bold" if each is fastest else None)
        console.print(table)
    for sentence in (*outcomes.told(found.drawn, found.source), *found.assumptions):
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
        (
            "engine",
            f"mode {found['mode']} on {found['device']}, {found['dtype']}{on_cpu}; loaded in {found['load_seconds']:.1f} s",
        ),
        ("K/V", f"{found['kv_pages']} pages of {found['kv_page_tokens']} tokens, {_size(found['kv_bytes'])}"),
        ("rounds", "as graphs" if found["rounds"] == "graphs" else found["rounds"]),
    ]
    if found["recorded"]:
        cost = f"{found['recording_seconds']:.1f} s, {_size(found['recording_bytes'])}"
        sizes = ", ".join(map(str, found["batch_sizes"]))
        lines.append(("recorded", f"{found['recorded']} programs, for batches of {sizes}: {cost}"))
    console.print()
    for name, value in lines:
        console.print(f"{name:<16}{value}")


def _command(options: EngineOptions, setting: Setting, apart: bool) -> str:
    words = ["ssd", "serve", options.target, "--mode", setting.mode, "--max-batch", str(setting.batch)]
    if setting.mode != "ar":
        words += ["--lookahead", str(setting.lookahead)]
        words += ["--draft", options.draft] if options.draft not in (None, EngineOptions.draft) else []
    if setting.mode == "ssd":
        words += ["--budget", str(setting.budget)]
        words += ["--device", "cuda:0", "--draft-device", "cuda:1"] if apart else []
    for name in ("dtype", "weights", "threads", "draft_threads"):
        if getattr(options, name) != getattr(EngineOptions, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return shlex.join(words)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
