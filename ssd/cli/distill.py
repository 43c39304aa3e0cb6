"""`ssd distill`: a draft for any target, made from the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ssd.cli import options as o
from ssd.cli.console import percent
from ssd.cli.decode import read_prompts

if TYPE_CHECKING:
    from ssd.distill.report import Worth
    from ssd.distill.training import Status

STUDENT, DATA, TRAINING = "The draft", "Data", "Training"


def distill(
    target: Annotated[
        str,
        typer.Argument(
            help="A known model, a Hugging Face directory, a .gguf file or a hub id; a chat model.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for the draft.", show_default=False)],
    layers: Annotated[int, o.option("--layers", help="Layers of the target's shape.", panel=STUDENT)] = 4,
    from_layers: Annotated[
        str | None,
        o.option(
            "--from-layers",
            help="The target's layers they start from: its outermost unless given.",
            panel=STUDENT,
            metavar="N,N,..",
        ),
    ] = None,
    vocab: Annotated[int, o.option("--vocab", help="Ids that the draft can propose.", panel=STUDENT)] = 8192,
    weights: Annotated[
        str, o.option("--weights", help="How it is stored, and runs on a CPU: 'int8' or 'bfloat16'.", panel=STUDENT)
    ] = "int8",
    tokens: Annotated[int, o.option("--tokens", help="Tokens of answers that the target makes up.", panel=DATA)] = 574_000,
    answer_tokens: Annotated[int, o.option("--answer-tokens", help="Of one answer, at most.", panel=DATA)] = 192,
    prompts: Annotated[
        Path | None,
        o.option(
            "--prompts",
            help="Your own prompts, answered too: one JSON object a line.",
            panel=DATA,
            metavar="FILE.jsonl",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        o.option(
            "--exclude",
            help="Leave out chats that share 13 words in a row with a line of this file: benchmarks. May be given several times.",
            panel=DATA,
            metavar="FILE.jsonl[:FIELD]",
        ),
    ] = None,
    field: Annotated[str, o.option("--field", help="Where a line has its prompt.", panel=DATA)] = "prompt",
    epochs: Annotated[float, o.option("--epochs", help="Over the data, unless the time is over before.", panel=TRAINING)] = 6.0,
    learning_rate: Annotated[float, o.option("--learning-rate", help="At its highest.", panel=TRAINING)] = 3e-3,
    batch_tokens: Annotated[int, o.option("--batch-tokens", help="Tokens a step.", panel=TRAINING)] = 2048,
    time_budget: Annotated[
        float | None, o.option("--time-budget", help="Minutes for everything, about.", panel=TRAINING, metavar="MINUTES")
    ] = None,
    resume: Annotated[bool, o.option("--resume", help="Go on with the run in the folder.", panel=TRAINING)] = False,
    device: Annotated[str, o.option("--device", help="Of the training: 'cpu', 'cuda' or 'auto'.", panel=o.MACHINE)] = "auto",
    threads: o.Threads = None,
    seed: Annotated[int, o.option("--seed", help="Of the data and of the training.", panel=o.MACHINE)] = 0,
    as_json: o.Json = False,
) -> None:
    """Make a small draft for a target, from the target alone: it makes up chats, and a few of its layers learn from them.

    Use it with `ssd decode --draft DIR`, or draft= in Python.
    """
    own = list(read_prompts(prompts, field)) if prompts is not None else []
    excluded = [text for each in exclude or () for text in _texts(each, field)]
    from ssd.cli.console import print_json
    from ssd.distill import Recipe
    from ssd.distill import distill as make

    recipe = Recipe(
        layers=layers,
        from_layers=o.parse_numbers("--from-layers", from_layers, "layers of the target", "0,1,28,29"),
        vocab=vocab,
        weights=weights,
        tokens=tokens,
        answer_tokens=answer_tokens,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        time_budget=time_budget,
        device=device,
        threads=threads,
        seed=seed,
    )
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
    return read_prompts(Path(path), own_field or field)


@contextmanager
def _bars() -> Iterator[tuple[Callable[[str], Callable[[float], None]], Callable[[Status], None]]]:
    """One bar a step on stderr, each staying when the next begins; where that is no terminal, a line now and then."""
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


def _print(found: Mapping[str, Worth], out: Path) -> None:
    from ssd.distill.report import SHOWN

    table = Table(title="Answers held out: top-1 agreement, and tokens a round by lookahead K")
    for column in ("domain", "tokens", "agreement", *(f"K = {k}" for k in SHOWN)):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain, each in found.items():
        figures: list[Any] = [f"{each.tokens_per_round[k]:.2f}" for k in SHOWN]
        table.add_row(domain, str(each.tokens), f"{each.agreement:.1%}", *figures)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"The draft is in {out}; use it with --draft {out}.", soft_wrap=True)
