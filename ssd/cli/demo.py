"""`ssd demo`: one prompt in three modes, with the cost of each; then the same paced, as if each role had hardware of its own.

Every figure and every sentence under a table is computed from the runs above it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ssd.cli import options as o
from ssd.cli.console import figure, percent, print_json
from ssd.cli.tints import STYLES, Tints, legend
from ssd.errors import SsdError
from ssd.fields import flat
from ssd.models.registry import draft_named
from ssd.options import MACHINE, EngineOptions, ModeName, SamplingParams
from ssd.serving.mode import resolve_mode

if TYPE_CHECKING:
    from ssd.decoding.stats import Stats
    from ssd.requests import Completion, Stream

PROMPT = "Write a short story about a lighthouse keeper."
MODES: dict[ModeName, str] = {
    "ar": "autoregressive: a target pass for every token",
    "sd": "speculative: draft, then verify",
    "ssd": "speculative speculative: draft ahead while verifying",
}
DRAFT_SPEED = 8  # paced: draft passes in the time of one target pass, as a draft made for the purpose has
HEADROOM = 1.25  # paced: over the longest pass measured, so that the pace can be kept
PACED_SECONDS = 10.0  # paced: longest time of the autoregressive run,
PACED_TOKENS = 16  # unless it would have fewer tokens than these

HEADINGS = ("tokens/s", "speed-up\nover ar", "tokens\na round", "acceptance", "hit rate", "draft time\nhidden", "identical")

Pace = tuple[float, float]
ENGINE = ("target", "draft", "lookahead", "budget", "dtype", "threads", "draft_threads", "pace")  # options of its engines


@dataclass
class Row:
    """One mode's run, compared with the autoregressive run of the same table."""

    mode: str
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
    """The three modes of one prompt side by side, paced or not."""

    rows: list[Row]
    max_new_tokens: int | None
    pace: Pace | None
    verdict: str

    @classmethod
    def of(
        cls,
        completions: dict[str, Completion],
        reference: list[int],
        max_new_tokens: int | None,
        lookahead: int,
        pace: Pace | None,
    ) -> Comparison:
        """reference: the token ids that every mode must give."""
        speed = {mode: completion.stats.decode_tokens_per_s for mode, completion in completions.items()}
        base = speed["ar"]
        rows = [
            Row(mode, c.stats, s / base if (s := speed[mode]) and base else None, c.token_ids == reference)
            for mode, c in completions.items()
        ]
        return cls(rows, max_new_tokens, pace, verdict(rows, lookahead, pace))

    @property
    def identical(self) -> bool:
        return all(row.identical for row in self.rows)

    def for_json(self) -> dict[str, Any]:
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
            for row in self.rows
        }
        return {"pace_ms": self.pace, "max_new_tokens": self.max_new_tokens, "modes": modes, "verdict": self.verdict}


@o.takes(only=(*ENGINE, "max_new_tokens"), max_new_tokens=64)
def demo(
    prompt: Annotated[str, typer.Argument(help="One user message.")] = PROMPT,
    *,
    options: EngineOptions,
    params: SamplingParams,
    paced: Annotated[bool, o.option("--paced/--no-paced", help="Second run of the three modes, paced.", panel=MACHINE)] = True,
    as_json: o.Json = False,
    trace: o.Trace = None,
) -> None:
    """Decode one prompt autoregressively, speculatively and speculative-speculatively, and compare the cost of each."""
    options = replace(options, max_batch=1)
    named = draft_named(options.draft, options.target)
    resolve_mode(replace(options, mode="ssd"), named is not None)  # errors come before anything is loaded
    o.check_writable(trace)
    show = _Show(quiet=as_json)
    runner = _Runner(o.check_text(prompt, "the prompt"), options, show, record=trace is not None)
    lookahead = options.speculation_options.lookahead

    show.heading(prompt, options)
    plain = runner.run_modes(params, None)
    reference = plain["ar"].token_ids
    comparisons = [Comparison.of(plain, reference, params.max_new_tokens, lookahead, None)]
    show.comparison(comparisons[0])
    if paced:
        pace = options.pace or reachable_pace([completion.stats for completion in plain.values()], lookahead)
        tokens = len(reference)
        if pace[0] > 0:
            tokens = min(tokens, max(PACED_TOKENS, int(PACED_SECONDS / (pace[0] / 1e3))))
        show.pace(pace)
        completions = runner.run_modes(replace(params, max_new_tokens=tokens), pace)
        comparisons.append(Comparison.of(completions, reference[:tokens], tokens, lookahead, pace))
        show.comparison(comparisons[1])
    identical = all(each.identical for each in comparisons)
    if as_json:
        settings = {name: value for name, value in flat(options).items() if name in (*ENGINE, "max_batch") and name != "pace"}
        first = plain["ar"]
        print_json(
            {
                "prompt": prompt,
                **settings,
                "text": first.text,
                "token_ids": reference,
                "identical": identical,
                "tables": [each.for_json() for each in comparisons],
            }
        )
    if trace is not None:
        runner.write_trace(trace)
    if not identical:
        raise SsdError("the modes gave different tokens, which greedy decoding must never do; please report it.")


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
    """A sentence where passes took longer than the pace, so that the pace was not measured."""
    late = 1.25  # the time of a pass includes the drawing of its tokens
    found = []
    verify = max(row.stats.t_verify_ms or 0.0 for row in rows)
    if verify > late * pace[0]:
        found.append(f"a verification took {verify:.0f} ms where the pace asks for {pace[0]:g}")
    passes = {"sd": lookahead, "ssd": lookahead + 1}
    drafting = max((row.stats.t_draft_ms or 0.0) / passes[row.mode] for row in rows if row.mode in passes)
    if drafting > late * pace[1]:
        found.append(f"a pass of the draft took {drafting:.0f} ms where the pace asks for {pace[1]:g}")
    return [f"This machine could not keep the pace: {' and '.join(found)}."] if found else []


class _Runner:
    """Runs the modes of one prompt, an engine for each, and keeps their timelines."""

    def __init__(self, prompt: str, options: EngineOptions, show: _Show, record: bool) -> None:
        self._prompt = prompt
        self._options = options
        self._show = show
        self._record = record
        self._timelines: dict[str, Any] = {}  # Chrome traces by the name of their run

    def run_modes(self, params: SamplingParams, pace: Pace | None) -> dict[str, Completion]:
        return {mode: self._run(mode, params, pace) for mode in MODES}

    def _run(self, mode: ModeName, params: SamplingParams, pace: Pace | None) -> Completion:
        name = mode if pace is None else f"{mode}, paced"
        self._show.mode(name, MODES[mode])
        options = replace(self._options, mode=mode, pace=pace)
        with o.loaded_engine(f"Loading {options.target} for {name}", options) as engine:
            if self._record:
                engine.trace.record()
            stream = engine.stream(self._prompt, params)
            self._show.answer(stream)
            if self._record:
                self._timelines[name] = engine.trace.timeline()
        completion = stream.completion
        assert completion is not None
        if completion.error is not None:
            raise SsdError(completion.error)
        if completion.degraded or completion.stats.mode != mode:
            raise SsdError(f"the draft failed in mode {mode}, so there is nothing to compare; try another --draft.")
        return completion

    def write_trace(self, path: Path) -> None:
        """All runs in one timeline, each as a process that begins at 0."""
        events: list[dict[str, Any]] = []
        for pid, (name, timeline) in enumerate(self._timelines.items(), 1):
            events.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}})
            events += [event | {"pid": pid} for event in timeline["traceEvents"]]
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


class _Show:
    """Shows the runs on stdout as they happen. quiet: shows nothing, because the result is to be JSON."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(highlight=False, quiet=quiet)

    def heading(self, prompt: str, options: EngineOptions) -> None:
        self._console.print(f"[bold]{target_and_draft(options)}[/]")
        self._console.print(f"Prompt: {prompt}", markup=False)
        self._console.print("Tokens: ", legend(STYLES), sep="")

    def pace(self, pace: Pace) -> None:
        self._console.rule("[bold]The same, paced[/]")
        self._console.print(_paced_in_words(pace))

    def mode(self, name: str, description: str) -> None:
        self._console.print(f"\n[bold]{name}[/] · {description}")

    def answer(self, stream: Stream) -> None:
        """Each token in the tint of its origin, as it comes."""
        tints, shown = Tints(self._console), 0
        for piece in stream:
            tokens = stream.origins[shown:]
            shown += len(tokens)
            tints.write(piece, tokens)
        tints.end()

    def comparison(self, comparison: Comparison) -> None:
        self._console.print()
        self._console.print(_table(comparison.rows, comparison.pace))
        self._console.print(comparison.verdict, markup=False)


def target_and_draft(options: EngineOptions) -> str:
    draft = "its own draft" if options.draft == "auto" else options.draft
    settings = options.speculation_options
    return f"{options.target}, drafted by {draft}, lookahead {settings.lookahead}, budget {settings.budget}"


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
