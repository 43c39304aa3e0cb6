"""Tables, figures and captions that the pages share."""

from __future__ import annotations

from common.musts import limit, title
from common.results import Row

NOT_YET_RUN = "not yet run"


def figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def table(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def musts_table(musts: list[Row]) -> str:
    lines = [["must", "limit", "measured", "holds"]]
    lines += [[title(must), limit(must), figure(must["measured"], 2), "yes" if must["holds"] else "**no**"] for must in musts]
    return table(lines)


def made_on(machine: Row, *more: str) -> str:
    return "; ".join([machine["device"], *more, f"torch {machine['torch']}", f"commit {machine['commit']}", machine["date"]])


def prompts_in_words(settings: Row) -> str:
    """The number of prompts and their source; for a file with the start of its digest, which tells it from others of the same
    name."""
    digest = settings["prompts_sha256"]
    return f"{settings['limit']} prompts of {settings['prompts']}" + (f" (sha256 {digest[:12]})" if digest else "")


def files_in_words(settings: Row) -> str:
    """The prompt files of a result that has several."""
    return ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in settings["prompts"].items())
