"""`ssd distill`: a draft for any target, made from the target alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ssd.bench.text import percent
from ssd.cli import options as o
from ssd.cli.console import print_json
from ssd.cli.prompts import read_texts
from ssd.distill.recipe import DATA, TRAINING, Recipe

if TYPE_CHECKING:
    from ssd.distill.report import HeldOutScore
    from ssd.distill.training import Status


@o.takes()
def distill(
    target: Annotated[
        str,
        typer.Argument(
            help="Target: a known model, a Hugging Face directory, a .gguf file or a hub id; a chat model.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the draft.", show_default=False)],
    *,
    recipe: Recipe,
    prompts: Annotated[
        Path | None,
        o.option(
            "--prompts",
            help="File of your own prompts for the target to answer too, one JSON object a line.",
            panel=DATA,
            metavar="FILE.jsonl",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        o.option(
            "--exclude",
            help="File of texts, such as a benchmark's; chats that share 13 words in a row with a line of it are left out. "
            "May be given several times.",
            panel=DATA,
            metavar="FILE.jsonl[:FIELD]",
        ),
    ] = None,
    field: Annotated[str, o.option("--field", help="Field of a line that has its prompt.", panel=DATA)] = "prompt",
    resume: Annotated[bool, o.option("--resume", help="Continuation of the run in the folder.", panel=TRAINING)] = False,
    as_json: o.Json = False,
) -> None:
    """Make a small draft for a target, from the target alone: it makes up chats, and a few of its layers learn from them.

    Use it with `ssd decode --draft DIR`, or draft= in Python.
    """
    own = list(read_texts(prompts, field)) if prompts is not None else []
    excluded = [text for each in exclude or () for text in _texts(each, field)]
    from ssd.distill import distill as make

    with _bars() as (stage, status):
        found = make(target, out, recipe, own, excluded, resume, stage, status)
    if as_json:
        print_json(
            {domain: {"agreement": each.agreement, "tokens_per_round": each.tokens_per_round} for domain, each in found.items()}
        )
    else:
        _print(found, out)


def _texts(argument: str, field: str) -> Iterator[str]:
    path, _, own_field = argument.partition(":")
    return read_texts(Path(path), own_field or field)


@contextmanager
def _bars() -> Iterator[tuple[Callable[[str], Callable[[float], None]], Callable[[Status], None]]]:
    """A bar per step on stderr, which stays when the next begins; without a terminal, a line per tenth."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
    bars = Progress(*columns, console=console, redirect_stdout=False, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}
    said: dict[str, int] = {}

    def show(name: str, fraction: float, figures: str = "") -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=1.0, figures="")
        bars.update(tasks[name], completed=fraction, figures=figures)
        tenth = int(10 * fraction)
        if not console.is_terminal and said.get(name) != tenth:
            said[name] = tenth
            console.print(f"{name}: {tenth * 10} % {figures}")

    def status(now: Status) -> None:
        agreement = f", held-out agreement {percent(now.agreement)}" if now.agreement is not None else ""
        show("Training", now.fraction, f"{now.tokens_per_s:.0f} tokens/s, KL {now.kl:.2f}{agreement}")

    with bars:
        yield lambda name: lambda fraction: show(name, fraction), status


def _print(found: Mapping[str, HeldOutScore], out: Path) -> None:
    from ssd.distill.report import SHOWN

    table = Table(title="Held-out answers: top-1 agreement, and tokens per round by lookahead K")
    for column in ("domain", "tokens", "agreement", *(f"K = {k}" for k in SHOWN)):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain, each in found.items():
        figures: list[Any] = [f"{each.tokens_per_round[k]:.2f}" for k in SHOWN]
        table.add_row(domain, str(each.tokens), f"{each.agreement:.1%}", *figures)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"The draft is in {out}; use it with --draft {out}.", soft_wrap=True)
