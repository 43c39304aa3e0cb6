"""`ssd simulate`: the speed of each mode with given times and outcomes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ssd.bench.text import NOTHING, figure, percent
from ssd.cli import options as o
from ssd.cli import outcomes
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
    acceptance: outcomes.Acceptance = None,
    first_miss: outcomes.FirstMiss = None,
    decay: outcomes.Decay = None,
    lookahead: outcomes.Lookaheads = "2,4,6,8",
    budget: outcomes.Budgets = "8,16,24",
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
    lookaheads, budgets = outcomes.numbers("lookahead", lookahead), outcomes.numbers("budget", budget)

    from ssd.simulate.rounds import Times, grid
    from ssd.simulate.rounds import simulate as run

    drawn, source = outcomes.outcomes_of(result, max(budgets), acceptance, first_miss, decay)
    given = Times(t_verify, t_token or t_verify, t_draft, t_branch or t_draft, t_exchange)
    settings = grid(lookaheads, budgets, batch, "none" if fallback == "none" else "neural")
    found = [run(each, drawn, given, rounds, seed) for each in settings]
    if as_json:
        from ssd.bench.results import FORMAT

        print_json(
            {
                "what": "simulated",
                "format": FORMAT,
                "times_ms": asdict(given),
                "outcomes": asdict(drawn),
                "rows": [asdict(each) for each in found],
            }
        )
    else:
        _show(found, drawn, source)


def _show(found: list[Simulated], drawn: Outcomes, source: str) -> None:
    best_sd = max(each.tokens_per_s for each in found if each.setting.mode == "sd")
    fastest = max(found, key=lambda each: each.tokens_per_s)
    table = figures_table("simulated", "setting", HEADINGS)
    for each in found:
        table.add_row(each.name, *_cells(each, found[0].tokens_per_s, best_sd), style="bold" if each is fastest else None)
    console = Console(highlight=False)
    console.print(table)
    for sentence in outcomes.told(drawn, source):
        console.print(sentence)


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
