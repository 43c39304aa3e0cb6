"""`ssd demo`: one prompt, three modes, and what each cost; then the same three paced, each role as if it had hardware of its own.

Every figure and every sentence under a table is computed from the run that was just made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ssd.cli import options as o
from ssd.cli.console import figure, percent, print_json
from ssd.errors import SsdError
from ssd.models.registry import draft_named
from ssd.options import EngineConfig, SamplingParams, SpeculationConfig

if TYPE_CHECKING:
    from ssd.decoding.stats import Stats
    from ssd.requests import Completion

PROMPT = "Write a short story about a lighthouse keeper."
MODES = {
    "ar": "autoregressive: a target pass for every token",
    "sd": "speculative: draft, then verify",
    "ssd": "speculative speculative: draft ahead while verifying",
}
DRAFT_SPEED = 8  # paced: draft passes in the time of a target pass, as a draft made to be one would have
HEADROOM = 1.25  # paced: over the longest pass measured, so that the pace can be kept
PACED_SECONDS = 10.0  # paced: what the autoregressive run may take
PACED_TOKENS = 16  # but no fewer tokens than these

HEADINGS = ("tokens/s", "speed-up\nover ar", "tokens\na round", "acceptance", "hit rate", "draft time\nhidden", "identical")

Pace = tuple[float, float]


@dataclass
class Row:
    """One mode's run beside the autoregressive one of the same table."""

    mode: str
    stats: Stats
    speed_up: float | None
    identical: bool

    @property
    def tokens_per_round(self) -> float:
        return self.stats.accepted_per_round + 1

    @property
    def draft_time_hidden(self) -> float | None:
        """The part of the drafting that the verification covered."""
        hidden, drafting = self.stats.hidden_draft_ms, self.stats.t_draft_ms
        return hidden / drafting if hidden is not None and drafting else None


def demo(
    prompt: Annotated[str, typer.Argument(help="One user message.")] = PROMPT,
    target: o.Target = "smollm2-135m",
    draft: o.Draft = "auto",
    lookahead: o.Lookahead = SpeculationConfig.lookahead,
    budget: o.Budget = SpeculationConfig.budget,
    max_new_tokens: o.MaxNewTokens = 64,
    dtype: o.Dtype = EngineConfig.dtype,
    threads: o.Threads = None,
    draft_threads: o.DraftThreads = None,
    paced: Annotated[bool, o.option("--paced/--no-paced", help="Run the three modes again, paced.", panel=o.MACHINE)] = True,
    pace: o.Pace = None,
    as_json: o.Json = False,
    trace: o.Trace = None,
) -> None:
    """Decode one prompt autoregressively, speculatively and speculative-speculatively, and compare what each cost."""
    settings: dict[str, Any] = {
        "target": target,
        "draft": o.parse_draft(draft),
        "lookahead": lookahead,
        "budget": budget,
        "dtype": dtype,
        "threads": threads,
        "draft_threads": draft_threads,
        "max_batch": 1,
    }
    chosen_pace = o.parse_pace(pace)
    SamplingParams(max_new_tokens=max_new_tokens)  # what is wrong is refused before anything is loaded
    named = draft_named(settings["draft"], target)
    EngineConfig(target, settings["draft"], "ssd", pace=chosen_pace).resolve_mode(named is not None)
    o.check_writable(trace)
    show = _Show(o.check_text(prompt, "the prompt"), settings, as_json, trace)

    eager = show.run_modes(max_new_tokens, None)
    reference = eager["ar"].token_ids
    tables = [show.table(eager, reference, max_new_tokens, None)]
    if paced:
        times = chosen_pace or reachable_pace([completion.stats for completion in eager.values()], lookahead)
        tokens = max_new_tokens if times[0] == 0 else int(PACED_SECONDS / (times[0] / 1e3))
        tokens = min(max_new_tokens, max(PACED_TOKENS, tokens))
        tables.append(show.table(show.run_modes(tokens, times), reference[:tokens], tokens, times))
    identical = all(mode["identical"] for table in tables for mode in table["modes"].values())
    if as_json:
        print_json(
            {
                "prompt": prompt,
                **settings,
                "text": eager["ar"].text,
                "token_ids": reference,
                "identical": identical,
                "tables": tables,
            }
        )
    if trace is not None:
        show.write_trace(trace)
    if not identical:
        raise SsdError("the modes gave different tokens, which greedy decoding must never do; please report it.")


def reachable_pace(runs: Sequence[Stats], lookahead: int) -> Pace:
    """A pace in whole milliseconds that this machine can keep, with a draft DRAFT_SPEED times as fast as its target.

    runs: stats of "ar", "sd" and "ssd", not paced. A draft pass is timed beside the target's, where that takes longer.
    """
    passes = {"sd": lookahead, "ssd": lookahead + 1}
    drafts = [stats.t_draft_ms / passes[stats.mode] for stats in runs if stats.t_draft_ms is not None]
    verifications = [stats.t_verify_ms for stats in runs if stats.t_verify_ms is not None]
    draft = math.ceil(HEADROOM * max(drafts, default=1.0))
    return float(max(DRAFT_SPEED * draft, math.ceil(HEADROOM * max(verifications, default=1.0)))), float(draft)


def verdict(rows: Sequence[Row], lookahead: int, pace: Pace | None) -> str:
    """What the figures of a table say, in words."""
    ar, *others = rows
    sentences = []
    for row in others:
        if row.speed_up is not None:
            sentences.append(
                f"A round of {row.mode} takes as long as {row.tokens_per_round / row.speed_up:.1f} tokens of ar and yields "
                f"{row.tokens_per_round:.1f}: {_times_as_fast(row.speed_up)}."
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
    if pace is not None:
        sentences += _unkept(rows, lookahead, pace)
    return " ".join(sentences)


def _times_as_fast(speed_up: float) -> str:
    if abs(speed_up - 1) < 0.03:
        return "as fast as ar"
    return f"{speed_up:.2f} times the speed of ar"


def _unkept(rows: Sequence[Row], lookahead: int, pace: Pace) -> list[str]:
    """Whether the passes took longer than the pace, which then is not what was measured."""
    late = 1.25  # a pass is timed with the drawing behind it
    found = []
    verify = max(row.stats.t_verify_ms or 0.0 for row in rows)
    if verify > late * pace[0]:
        found.append(f"a verification took {verify:.0f} ms where the pace asks for {pace[0]:g}")
    passes = {"sd": lookahead, "ssd": lookahead + 1}
    drafting = max((row.stats.t_draft_ms or 0.0) / passes[row.mode] for row in rows if row.mode in passes)
    if drafting > late * pace[1]:
        found.append(f"a pass of the draft took {drafting:.0f} ms where the pace asks for {pace[1]:g}")
    return [f"This machine could not keep the pace: {' and '.join(found)}."] if found else []


class _Show:
    """Runs the modes and shows them: as they happen on stdout, or not at all where the result is to be JSON."""

    def __init__(self, prompt: str, settings: dict[str, Any], as_json: bool, trace: Path | None) -> None:
        self._prompt = prompt
        self._settings = settings
        self._lookahead: int = settings["lookahead"]
        self._quiet = as_json
        self._tracing = trace is not None
        self._timelines: dict[str, Any] = {}  # Chrome traces by the name of their run
        self._console = Console(highlight=False)
        if not as_json:
            self._console.print(f"[bold]{target_and_draft(settings)}[/]", f"Prompt: {prompt}", sep="\n", markup=True)

    def run_modes(self, max_new_tokens: int, pace: Pace | None) -> dict[str, Completion]:
        if pace is not None and not self._quiet:
            self._console.rule("[bold]The same, paced[/]")
            self._console.print(_paced_in_words(pace))
        return {mode: self._run(mode, max_new_tokens, pace) for mode in MODES}

    def _run(self, mode: str, max_new_tokens: int, pace: Pace | None) -> Completion:
        name = mode if pace is None else f"{mode}, paced"
        if not self._quiet:
            self._console.print(f"\n[bold]{name}[/] · {MODES[mode]}")
        with o.loaded_engine(
            f"Loading {self._settings['target']} for {name}", mode=mode, pace=pace, **self._settings
        ) as engine:
            if self._tracing:
                engine.trace.record()
            stream = engine.stream(self._prompt, SamplingParams(max_new_tokens=max_new_tokens))
            for piece in stream:
                if not self._quiet:
                    print(piece, end="", flush=True)
            if not self._quiet:
                print(flush=True)
            if self._tracing:
                self._timelines[name] = engine.trace.timeline()
        completion = stream.completion
        assert completion is not None
        if completion.degraded or completion.stats.mode != mode:
            raise SsdError(f"the draft failed in mode {mode}, so there is nothing to compare; try another --draft.")
        return completion

    def table(
        self, completions: dict[str, Completion], reference: list[int], max_new_tokens: int, pace: Pace | None
    ) -> dict[str, Any]:
        """Show a table, and return it for JSON. reference: the token ids every mode must give."""
        speed = {mode: completion.stats.decode_tokens_per_s for mode, completion in completions.items()}
        base = speed["ar"]
        rows = [
            Row(mode, c.stats, s / base if (s := speed[mode]) and base else None, c.token_ids == reference)
            for mode, c in completions.items()
        ]
        words = verdict(rows, self._lookahead, pace)
        if not self._quiet:
            self._console.print()
            self._console.print(_table(rows, pace))
            self._console.print(words, markup=False)
        modes = {
            row.mode: {
                "tokens_per_s": row.stats.decode_tokens_per_s,
                "speed_up": row.speed_up,
                "tokens_per_round": row.tokens_per_round,
                "acceptance_rate": row.stats.acceptance_rate,
                "hit_rate": row.stats.hit_rate,
                "draft_time_hidden": row.draft_time_hidden,
                "identical": row.identical,
                "stats": asdict(row.stats),
            }
            for row in rows
        }
        return {"pace_ms": pace, "max_new_tokens": max_new_tokens, "modes": modes, "verdict": words}

    def write_trace(self, path: Path) -> None:
        """All runs in one timeline, each a process of its own that begins at 0."""
        events: list[dict[str, Any]] = []
        for pid, (name, timeline) in enumerate(self._timelines.items(), 1):
            events.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}})
            events += [event | {"pid": pid} for event in timeline["traceEvents"]]
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def target_and_draft(settings: dict[str, Any]) -> str:
    draft = "its own draft" if settings["draft"] == "auto" else settings["draft"]
    return f"{settings['target']}, drafted by {draft}, lookahead {settings['lookahead']}, budget {settings['budget']}"


def _paced_in_words(pace: Pace) -> str:
    verify, draft = pace
    faster = f", where the draft is {verify / draft:.1f} times as fast as the target" if draft else ""
    return (
        f"Every pass of the target lasts at least {verify:g} ms and every pass of the draft at least {draft:g} ms, as if each had "
        f"hardware of its own{faster}. It shows what the rounds do with such a pair; it is not the speed of this machine."
    )


def _table(rows: Sequence[Row], pace: Pace | None) -> Table:
    table = Table(
        title="paced" if pace is not None else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("mode", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        stats = row.stats
        table.add_row(
            row.mode,
            figure(stats.decode_tokens_per_s),
            figure(row.speed_up, "×", 2),
            figure(row.tokens_per_round, "", 2),
            percent(stats.acceptance_rate),
            percent(stats.hit_rate),
            percent(row.draft_time_hidden),
            "yes" if row.identical else "no",
        )
    return table
