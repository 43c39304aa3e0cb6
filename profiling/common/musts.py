"""Limits that a measured figure must keep."""

from __future__ import annotations

from dataclasses import dataclass

from common.results import Row


@dataclass(frozen=True)
class Must:
    """A figure and its limits. what: the figure, with its unit."""

    what: str
    at_least: float | None = None
    at_most: float | None = None

    def judged(self, measured: float) -> Row:
        """The must as a result records it, with the figure measured and whether it holds."""
        holds = (self.at_least is None or measured >= self.at_least) and (self.at_most is None or measured <= self.at_most)
        return {"what": self.what, "at_least": self.at_least, "at_most": self.at_most, "measured": measured, "holds": holds}


def limit(must: Row) -> str:
    """The limits of a judged must in words: "≥ 0.85", "≤ 8" or "0.9 to 1.1"."""
    low, high = must["at_least"], must["at_most"]
    if low is None:
        return f"≤ {high:g}"
    return f"≥ {low:g}" if high is None else f"{low:g} to {high:g}"


def title(must: Row) -> str:
    """The figure of a judged must, with the kernel it belongs to, if any."""
    return f"{must['kernel']}: {must['what']}" if "kernel" in must else str(must["what"])


def line(must: Row) -> str:
    """A judged must as one line of a script's output."""
    return f"{'holds' if must['holds'] else 'DOES NOT HOLD'}: {title(must)}: {must['measured']:.3g} ({limit(must)})"
