"""Flags for the outcomes of rounds, which `ssd simulate` and `ssd plan` share, and the outcomes that they mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ssd.bench.text import percent
from ssd.cli import options as o

if TYPE_CHECKING:
    from ssd.simulate.outcomes import Outcomes

Acceptance = Annotated[
    float | None,
    o.option("--acceptance", help="Chance that a drafted token is accepted; 0.6 unless given or recorded.", panel=o.SIMULATED),
]
FirstMiss = Annotated[
    float | None,
    o.option(
        "--first-miss", help="Chance that one guess misses, c in 1 - c/F^r; 0.6 unless given or recorded.", panel=o.SIMULATED
    ),
]
Decay = Annotated[
    float | None,
    o.option("--decay", help="Exponent r of the misses; 1 unless given or recorded.", panel=o.SIMULATED),
]
Lookaheads = Annotated[
    str, o.option("--lookahead", help="Numbers of drafted tokens, with commas.", panel=o.SIMULATED, metavar="K,K,..")
]
Budgets = Annotated[str, o.option("--budget", help="Numbers of branches, with commas.", panel=o.SIMULATED, metavar="B,B,..")]


def numbers(name: str, text: str) -> list[int]:
    """The numbers of a flag. Raises WrongUsage."""
    found = [int(part) for part in text.split(",") if part.isascii() and part.strip().isdigit()]
    if len(found) < len(text.split(",")) or not all(1 <= n <= 1024 for n in found):
        raise o.WrongUsage(f"{name} is {text!r}; give numbers from 1 to 1024 with commas between them, such as 2,4.")
    return list(dict.fromkeys(found))


def outcomes_of(
    result: Path | None, guesses: int, acceptance: float | None, first_miss: float | None, decay: float | None
) -> tuple[Outcomes, str]:
    """The outcomes, and where they come from. result: of `ssd bench`. guesses: the largest number of branches. Raises
    SsdError."""
    from ssd.simulate.outcomes import Outcomes

    given = {"acceptance": acceptance, "first_miss": first_miss, "decay": decay}
    known = {name: value for name, value in given.items() if value is not None}
    if result is None:
        if wrong := [name for name in ("acceptance", "first_miss") if not 0 <= known.get(name, 0) <= 1]:
            raise o.WrongUsage(f"{wrong[0]} is {known[wrong[0]]}; a chance is from 0 to 1.")
        if not 0 <= known.get("decay", 0) <= 10:
            raise o.WrongUsage(f"decay is {known['decay']}; it must be from 0 to 10.")
        return Outcomes.assumed(guesses, **known), "assumed"
    if known:
        raise o.WrongUsage(f"{next(iter(known))} is given, and so is {result}, which has its own; leave one of them out.")

    from ssd.bench.results import BenchResult

    measured = BenchResult.read(result)
    stats = [each for variant in measured.variants for each in measured.stats(variant, mode="ssd")]
    return Outcomes.recorded(stats), f"result {result.name}"


def told(drawn: Outcomes, source: str) -> Iterator[str]:
    """The outcomes in two sentences."""
    yield f"Outcomes ({source}): accepted by position {', '.join(map(percent, drawn.acceptance))}."
    rejection, whole = (
        ", ".join(f"{percent(curve[f - 1])} of {f}" for f in (1, 2, 4, 8, 16) if f <= len(curve))
        for curve in (drawn.after_rejection, drawn.after_whole)
    )
    yield f"Next token among the guesses: {rejection} after a rejection, {whole} otherwise."
