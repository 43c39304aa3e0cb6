"""`ssd report`: results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssd.cli import options as o
from ssd.cli.console import say
from ssd.errors import SsdError


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json..", help="Results of `ssd bench`, `ssd simulate --json` or profiling/quality.py."),
    ],
    *,
    out: Annotated[Path, o.option("--out", help="HTML file for the page.", panel=o.OUTPUT, metavar="FILE")] = Path(
        "report.html"
    ),
) -> None:
    """Make one HTML page of results: tables, and charts that need no network."""
    try:
        from ssd.report.page import Inputs, page_of
    except ModuleNotFoundError as error:
        if error.name not in ("altair", "vl_convert"):
            raise
        raise SsdError(f"`ssd report` needs {error.name}, which is not installed; pip install 'ssd-decode[report]'.") from None
    text = page_of(Inputs.read(results))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SsdError(f"the page cannot be written to {out} ({error.strerror}); choose another file.") from None
    say(f"the page is in {out}.")
