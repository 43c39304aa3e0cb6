"""Runs of one prompt side by side: their figures, and what the figures mean in words. For `ssd demo`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ssd.bench.text import figure, percent
from ssd.cli.console import figures_table

if TYPE_CHECKING:
    from ssd.decoding.stats import Stats
    from ssd.requests import Completion

DRAFT_SPEED = 8  # paced: draft passes in the time of one target pass, as a draft made for the purpose has
HEADROOM = 1.25  # paced: over the longest pass measured, so that the pace can be kept

HEADINGS = ("tokens/s", "speed-up\nover ar", "tokens\na round", "acceptance", "hit rate", "drafting\nhidden", "identical")

Pace = tuple[float, float]


@dataclass
class Row:
    """A run, compared with the autoregressive run of the same table."""

    name: str
    stats: Stats
    speed_up: float | None
    identical: bool

    @property
    def tokens_per_round(self) -> float | None:
        return self.stats.mean_acceptance_length

    @property
    def draft_time_hidden(self) -> float | None:
        """The fraction of the drafting time that verification covered."""
        hidden, drafting = self.stats.hidden_draft_ms, self.stats.t_draft_ms
        return hidden / drafting if hidden is not None and drafting else None


@dataclass
class Comparison:
    """Runs of one prompt side by side. The first is the autoregressive one."""

    title: str
    rows: list[Row]
    max_new_tokens: int | None
    pace: Pace | None
    verdict: str

    @classmethod
    def of(
        cls,
        title: str,
        completions: dict[str, Completion],
        reference: list[int],
        max_new_tokens: int | None,
        lookahead: int,
        pace: Pace | None = None,
    ) -> Comparison:
        """completions: by the names of their rows. reference: the token ids that each must have."""
        base = completions["ar"].stats.decode_tokens_per_s
        rows = [
            Row(name, c.stats, s / base if (s := c.stats.decode_tokens_per_s) and base else None, c.token_ids == reference)
            for name, c in completions.items()
        ]
        return cls(title, rows, max_new_tokens, pace, verdict(rows, lookahead, pace))

    @property
    def identical(self) -> bool:
        return all(row.identical for row in self.rows)

    def table(self) -> Table:
        table = figures_table(self.title, "mode", HEADINGS, breaks=True)
        for row in self.rows:
            stats = row.stats
            table.add_row(
                row.name,
                figure(stats.decode_tokens_per_s),
                figure(row.speed_up, "×", 2),
                figure(row.tokens_per_round, "", 2),
                percent(stats.acceptance_rate),
                percent(stats.hit_rate),
                percent(row.draft_time_hidden),
                "yes" if row.identical else "no",
            )
        return table

    def for_json(self) -> dict[str, Any]:
        modes = {
            row.name: {
                "tokens_per_s": row.stats.decode_tokens_per_s,
                "speed_up": row.speed_up,
                "tokens_per_round": row.tokens_per_round,
                "acceptance_rate": row.stats.acceptance_rate,
                "hit_rate": row.stats.hit_rate,
                "draft_time_hidden": row.draft_time_hidden,
                "identical": row.identical,
                "stats": asdict(row.stats),
            }
            for row in self.rows
        }
        return {
            "title": self.title,
            "pace_ms": self.pace,
            "max_new_tokens": self.max_new_tokens,
            "modes": modes,
            "verdict": self.verdict,
        }


def reachable_pace(runs: Sequence[Stats], lookahead: int) -> Pace:
    """A pace in whole milliseconds that this machine can keep, with a draft DRAFT_SPEED times as fast as its target.

    runs: stats of "ar", "sd" and "ssd", not paced; in "ssd" a draft pass competes with the target's and takes longer.
    """
    passes = {"sd": lookahead, "ssd": lookahead + 1}
    drafts = [stats.t_draft_ms / passes[stats.mode] for stats in runs if stats.t_draft_ms is not None]
    verifications = [stats.t_verify_ms for stats in runs if stats.t_verify_ms is not None]
    draft = math.ceil(HEADROOM * max(drafts, default=1.0))
    return float(max(DRAFT_SPEED * draft, math.ceil(HEADROOM * max(verifications, default=1.0)))), float(draft)


def verdict(rows: Sequence[Row], lookahead: int, pace: Pace | None) -> str:
    """The meaning of a table's figures, in words."""
    ar, *others = rows
    sentences = []
    for row in others:
        if row.speed_up is not None and row.tokens_per_round is not None:
            gain = _times_as_fast(row.speed_up, "ar")
            sentences.append(
                f"A round of {row.name} takes as long as {row.tokens_per_round / row.speed_up:.1f} tokens of ar and yields "
                f"{row.tokens_per_round:.1f}: {gain}."
            )
    if not sentences:
        return "The text is too short to compare speeds."
    sd = others[0].stats
    slower = all(row.speed_up is not None and row.speed_up < 1 for row in others)
    if pace is None and slower and sd.t_draft_ms is not None and ar.stats.t_verify_ms is not None:
        share = sd.t_draft_ms / lookahead / ar.stats.t_verify_ms
        sentences.append(
            f"One pass of this draft takes {share:.0%} of the time of one of its target, on the same cores and the same memory, "
            f"and {percent(sd.acceptance_rate)} of what it proposes is accepted: speculation does not pay here."
        )
    by_name = {row.name: row.stats.decode_tokens_per_s for row in rows}
    for other in ("sd", "sd on both cores"):
        if (ssd := by_name.get("ssd")) and (speed := by_name.get(other)):
            sentences.append(f"ssd is {_times_as_fast(ssd / speed, other)}.")
    if pace is not None:
        sentences += _unkept(rows, lookahead, pace)
    return " ".join(sentences)


def _times_as_fast(speed_up: float, other: str) -> str:
    return f"as fast as {other}" if abs(speed_up - 1) < 0.03 else f"{speed_up:.2f} times as fast as {other}"


def _unkept(rows: Sequence[Row], lookahead: int, pace: Pace) -> list[str]:
    """A sentence where passes took longer than the pace, so that the pace was not measured."""
    late = 1.25  # the time of a pass includes the drawing of its tokens
    found = []
    verify = max(row.stats.t_verify_ms or 0.0 for row in rows)
    if verify > late * pace[0]:
        found.append(f"a verification took {verify:.0f} ms where the pace asks for {pace[0]:g}")
    passes = {"sd": lookahead, "ssd": lookahead + 1}
    drafting = max((row.stats.t_draft_ms or 0.0) / passes[row.stats.mode] for row in rows if row.stats.mode in passes)
    if drafting > late * pace[1]:
        found.append(f"a pass of the draft took {drafting:.0f} ms where the pace asks for {pace[1]:g}")
    return [f"This machine could not keep the pace: {' and '.join(found)}."] if found else []
