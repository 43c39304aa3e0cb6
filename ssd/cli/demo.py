"""`ssd demo`: one prompt in three modes, with the cost of each; then the same with a CPU core for each model.

Every figure and every sentence under a table is computed from the runs above it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ssd.cli import options as o
from ssd.cli.comparison import Comparison, Pace, reachable_pace
from ssd.cli.console import print_json
from ssd.cli.tints import STYLES, Tints, legend
from ssd.errors import SsdError
from ssd.fields import flat
from ssd.models.registry import draft_named
from ssd.options import MACHINE, EngineOptions, ModeName, SamplingParams
from ssd.runtime.cores import cores
from ssd.serving.mode import resolve_mode

if TYPE_CHECKING:
    from ssd.requests import Completion, Stream

PROMPT = "Write a Python function that counts the vowels in a word."


@dataclass(frozen=True)
class Setting:
    """A run of a table: its mode, what it does in words, and the options that it changes."""

    mode: ModeName
    does: str
    options: Mapping[str, Any] = field(default_factory=dict)


MODES = {
    "ar": Setting("ar", "autoregressive: a target pass for every token"),
    "sd": Setting("sd", "speculative: draft, then verify"),
    "ssd": Setting("ssd", "speculative speculative: draft ahead while verifying"),
}
A_CORE_EACH = {"threads": 1, "draft_threads": 1}
CORE_EACH = {name: replace(setting, options=A_CORE_EACH) for name, setting in MODES.items()}
CORE_EACH["sd on both cores"] = replace(MODES["sd"], does="the models take turns on both", options={"threads": 2})
PACED_SECONDS = 10.0  # paced: longest time of the autoregressive run,
PACED_TOKENS = 16  # unless it would have fewer tokens than these

# Options of its engines.
ENGINE = ("target", "draft", "lookahead", "budget", "dtype", "weights", "threads", "draft_threads", "pace")


@o.takes(only=(*ENGINE, "max_new_tokens"), max_new_tokens=64)
def demo(
    prompt: Annotated[str, typer.Argument(help="One user message.")] = PROMPT,
    *,
    options: EngineOptions,
    params: SamplingParams,
    paced: Annotated[
        bool,
        o.option(
            "--paced",
            help="Further runs, paced, as if each model had hardware of its own; --pace gives the pace.",
            panel=MACHINE,
        ),
    ] = False,
    as_json: o.Json = False,
    trace: o.Trace = None,
) -> None:
    """Decode one prompt autoregressively, speculatively and speculative-speculatively, and compare the cost of each."""
    options = replace(options, max_batch=1)
    named = draft_named(options.draft, options.target)
    resolve_mode(replace(options, mode="ssd"), named is not None)  # errors come before anything is loaded
    o.check_writable(trace)
    show = _Show(quiet=as_json)
    runner = _Runner(o.check_text(prompt, "the prompt"), show, record=trace is not None)
    lookahead = options.speculation_options.lookahead

    show.heading(prompt, options)
    plain = runner.run(MODES, params, replace(options, pace=None))
    reference = plain["ar"].token_ids
    comparisons = [Comparison.of("", plain, reference, params.max_new_tokens, lookahead)]
    show.comparison(comparisons[0])
    if options.threads is None and options.draft_threads is None:
        show.core_each(cores())
        if cores() > 1:
            completions = runner.run(CORE_EACH, params, replace(options, pace=None), "a core each")
            comparisons.append(Comparison.of("a core each", completions, reference, params.max_new_tokens, lookahead))
            show.comparison(comparisons[-1])
    if paced or options.pace is not None:
        pace = options.pace or reachable_pace([completion.stats for completion in plain.values()], lookahead)
        tokens = len(reference)
        if pace[0] > 0:
            tokens = min(tokens, max(PACED_TOKENS, int(PACED_SECONDS / (pace[0] / 1e3))))
        show.pace(pace)
        completions = runner.run(MODES, replace(params, max_new_tokens=tokens), replace(options, pace=pace), "paced")
        comparisons.append(Comparison.of("paced", completions, reference[:tokens], tokens, lookahead, pace))
        show.comparison(comparisons[-1])
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


class _Runner:
    """Decodes one prompt in several settings, with an engine for each, and keeps their timelines."""

    def __init__(self, prompt: str, show: _Show, record: bool) -> None:
        self._prompt = prompt
        self._show = show
        self._record = record
        self._timelines: dict[str, Any] = {}  # Chrome traces by the name of their run

    def run(
        self, settings: Mapping[str, Setting], params: SamplingParams, options: EngineOptions, title: str = ""
    ) -> dict[str, Completion]:
        """The settings one after the other, by name. title: tells their timelines from those of other tables."""
        return {name: self._run(name, setting, params, options, title) for name, setting in settings.items()}

    def _run(self, name: str, setting: Setting, params: SamplingParams, options: EngineOptions, title: str) -> Completion:
        self._show.run(name, setting.does)
        options = replace(options, mode=setting.mode, **setting.options)
        with o.loaded_engine(f"Loading {options.target} for {name}", options) as engine:
            if self._record:
                engine.trace.record()
            stream = engine.stream(self._prompt, params)
            self._show.answer(stream)
            if self._record:
                self._timelines[f"{name}, {title}" if name in self._timelines else name] = engine.trace.timeline()
        completion = stream.completion
        assert completion is not None
        if completion.error is not None:
            raise SsdError(completion.error)
        if completion.degraded or completion.stats.mode != setting.mode:
            raise SsdError(f"the draft failed in mode {setting.mode}, so there is nothing to compare; try another --draft.")
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

    def core_each(self, cores: int) -> None:
        self._console.rule("[bold]The same, with a core for each model[/]")
        if cores < 2:
            self._console.print("This needs two cores, and ssd may use one here.")

    def run(self, name: str, does: str) -> None:
        self._console.print(f"\n[bold]{name}[/] · {does}")

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
        self._console.print(comparison.table())
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
