"""The output of commands: results on stdout, so that they can be piped; everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

INTERRUPTED = 130  # exit status after Ctrl-C


def say(sentence: str) -> None:
    print(f"ssd: {sentence}", file=sys.stderr)


def print_json(document: Any) -> None:
    """Print a document on one line, with null for infinities and NaN."""
    print(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def figures_table(title: str, first: str, headings: Sequence[str], breaks: bool = False) -> Table:
    """A table without rows: a column of names, then columns of figures. breaks: whether names may take several lines."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(first, no_wrap=not breaks)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


@contextmanager
def progress_bar(description: str, after: str | None = None) -> Iterator[Callable[[float], None]]:
    """A bar on stderr while the block runs, if stderr is a terminal.

    Yields a function that takes the fraction done, 0 to 1. after: the description of the bar once the fraction is 1.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        rest = bar.add_task(after or "", total=None, visible=False)

        def advance(fraction: float) -> None:
            done = fraction >= 1 and after is not None
            bar.update(task, total=1.0, completed=fraction, visible=not done)
            bar.update(rest, visible=done)

        yield advance


@contextmanager
def count_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr while the block runs, if stderr is a terminal.

    Yields a function that takes the number done, and of how many.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
