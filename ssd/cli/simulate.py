"""`ssd simulate`: the speed of each mode with given times and outcomes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ssd.bench.text import NOTHING, figure, percent
from ssd.cli import options as o
from ssd.cli.console import figures_table, print_json

if TYPE_CHECKING:
    from ssd.simulate.outcomes import Outcomes
    from ssd.simulate.rounds import Simulated

HEADINGS = (
    "tokens/s a\nsequence",
    "over\nar",
    "over the\nbest sd",
    "tokens\na round",
    "ms a\nround",
    "hit\nrate",
    "break-\neven",
)


def simulate(
    result: Annotated[
        Path | None,
        typer.Argument(
            metavar="RESULT.json",
            help="Result of `ssd bench` whose decodes in mode 'ssd' give the outcomes.",
            show_default=False,
        ),
    ] = None,
    *,
    t_verify: Annotated[
        float,
        o.option(
            "--t-verify", help="Milliseconds of a target pass over a speculation, while the draft runs.", panel=o.SIMULATED
        ),
    ],
    t_draft: Annotated[float, o.option("--t-draft", help="Milliseconds of a draft pass.", panel=o.SIMULATED)],
    t_token: Annotated[
        float | None,
        o.option("--t-token", help="Milliseconds of a target pass of one row, for 'ar'; T_v unless given.", panel=o.SIMULATED),
    ] = None,
    t_branch: Annotated[
        float | None,
        o.option(
            "--t-branch", help="Milliseconds of a draft pass of all branches; as --t-draft unless given.", panel=o.SIMULATED
        ),
    ] = None,
    t_exchange: Annotated[
        float,
        o.option(
            "--t-exchange", help="Milliseconds between two verifications, with a link's latency both ways.", panel=o.SIMULATED
        ),
    ] = 0.0,
    acceptance: Annotated[
        float | None,
        o.option(
            "--acceptance", help="Chance that a drafted token is accepted; 0.6 unless given or recorded.", panel=o.SIMULATED
        ),
    ] = None,
    first_miss: Annotated[
        float | None,
        o.option(
            "--first-miss",
            help="Chance that one guess misses, c in 1 - c/F^r; 0.6 unless given or recorded.",
            panel=o.SIMULATED,
        ),
    ] = None,
    decay: Annotated[
        float | None,
        o.option("--decay", help="Exponent r of the misses; 1 unless given or recorded.", panel=o.SIMULATED),
    ] = None,
    lookahead: Annotated[
        str, o.option("--lookahead", help="Numbers of drafted tokens, with commas.", panel=o.SIMULATED, metavar="K,K,..")
    ] = "2,4,6,8",
    budget: Annotated[
        str, o.option("--budget", help="Numbers of branches, with commas.", panel=o.SIMULATED, metavar="B,B,..")
    ] = "8,16,24",
    batch: Annotated[int, o.option("--batch", help="Number of sequences that run at once.", panel=o.SIMULATED)] = 1,
    fallback: Annotated[
        str,
        o.option("--fallback", help="What a miss does: 'neural' drafts K tokens, 'none' verifies no draft.", panel=o.SIMULATED),
    ] = "neural",
    rounds: Annotated[int, o.option("--rounds", help="Rounds of each setting.", panel=o.SIMULATED)] = 200_000,
    seed: Annotated[int, o.option("--seed", help="Seed of the outcomes.", panel=o.SIMULATED)] = 0,
    as_json: o.Json = False,
) -> None:
    """Simulate the speed of each mode and setting on devices with these times, one for each role."""
    times = {"t_verify": t_verify, "t_draft": t_draft, "t_token": t_token, "t_branch": t_branch}
    for name, value in times.items():
        if value is not None and not 0 < value < float("inf"):
            raise o.WrongUsage(f"{name} is {value}; it must be a positive number of milliseconds.")
    if not 0 <= t_exchange < float("inf"):
        raise o.WrongUsage(f"t_exchange is {t_exchange}; it must be a number of milliseconds, 0 or more.")
    if fallback not in ("neural", "none"):
        raise o.WrongUsage(f"fallback is {fallback!r}; choose 'neural' or 'none'.")
    if not 1 <= batch <= 1024 or not 1 <= rounds <= 10**9 or seed < 0:
        raise o.WrongUsage("batch must be from 1 to 1024, rounds from 1 to 10^9, and seed 0 or more.")
    lookaheads, budgets = (_numbers(name, text) for name, text in (("lookahead", lookahead), ("budget", budget)))

    from ssd.simulate.rounds import Setting, Times
    from ssd.simulate.rounds import simulate as run

    outcomes = _outcomes(result, max(budgets), {"acceptance": acceptance, "first_miss": first_miss, "decay": decay})
    given = Times(t_verify, t_token or t_verify, t_draft, t_branch or t_draft, t_exchange)
    settings = [Setting("ar", batch=batch)]
    settings += [Setting("sd", k, batch=batch) for k in lookaheads]
    settings += [Setting("ssd", k, b, batch, "none" if fallback == "none" else "neural") for k in lookaheads for b in budgets]
    found = [run(each, outcomes, given, rounds, seed) for each in settings]
    if as_json:
        from ssd.bench.results import FORMAT

        print_json(
            {
                "what": "simulated",
                "format": FORMAT,
                "times_ms": asdict(given),
                "outcomes": asdict(outcomes),
                "rows": [asdict(each) for each in found],
            }
        )
    else:
        _show(found, outcomes, "result of ssd bench" if result else "assumed")


def _numbers(name: str, text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isascii() and part.strip().isdigit()]
    if len(numbers) < len(text.split(",")) or not all(1 <= n <= 1024 for n in numbers):
        raise o.WrongUsage(f"{name} is {text!r}; give numbers from 1 to 1024 with commas between them, such as 2,4.")
    return list(dict.fromkeys(numbers))


def _outcomes(result: Path | None, guesses: int, given: dict[str, float | None]) -> Outcomes:
    from ssd.simulate.outcomes import Outcomes

    known = {name: value for name, value in given.items() if value is not None}
    if result is None:
        if wrong := [name for name in ("acceptance", "first_miss") if not 0 <= known.get(name, 0) <= 1]:
            raise o.WrongUsage(f"{wrong[0]} is {known[wrong[0]]}; a chance is from 0 to 1.")
        if not 0 <= known.get("decay", 0) <= 10:
            raise o.WrongUsage(f"decay is {known['decay']}; it must be from 0 to 10.")
        return Outcomes.assumed(guesses, **known)
    if known:
        raise o.WrongUsage(f"{next(iter(known))} is given, and so is {result}, which has its own; leave one of them out.")

    from ssd.bench.results import BenchResult

    measured = BenchResult.read(result)
    return Outcomes.recorded([stats for variant in measured.variants for stats in measured.stats(variant, mode="ssd")])


def _show(found: list[Simulated], outcomes: Outcomes, source: str) -> None:
    best_sd = max(each.tokens_per_s for each in found if each.setting.mode == "sd")
    fastest = max(found, key=lambda each: each.tokens_per_s)
    table = figures_table("simulated", "setting", HEADINGS)
    for each in found:
        table.add_row(_name(each), *_cells(each, found[0].tokens_per_s, best_sd), style="bold" if each is fastest else None)
    console = Console(highlight=False)
    console.print(table)
    acceptance = ", ".join(percent(a) for a in outcomes.acceptance)
    rejection, whole = (
        ", ".join(f"{percent(curve[f - 1])} of {f}" for f in (1, 2, 4, 8, 16) if f <= len(curve))
        for curve in (outcomes.after_rejection, outcomes.after_whole)
    )
    console.print(f"Outcomes ({source}): accepted by position {acceptance}.")
    console.print(f"Next token among the guesses: {rejection} after a rejection, {whole} otherwise.")


def _name(each: Simulated) -> str:
    of = each.setting
    return of.mode + (f", K = {of.lookahead}" if of.lookahead else "") + (f", B = {of.budget}" if of.budget else "")


def _cells(each: Simulated, ar: float, best_sd: float) -> list[str]:
    is_ssd = each.setting.mode == "ssd"
    return [
        figure(each.tokens_per_s),
        figure(each.tokens_per_s / ar, digits=2),
        figure(each.tokens_per_s / best_sd, digits=2),
        figure(each.tokens_per_round, digits=2),
        figure(each.round_ms, digits=2),
        percent(each.hit_rate),
        NOTHING if not is_ssd else percent(each.break_even) if each.break_even is not None else "never",
    ]
