"""The page: sections of text, tables and charts in one file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from ssd import __version__
from ssd.bench.results import BenchResult, check_kind, naming_what_lacks, read_document
from ssd.bench.text import figure, percent
from ssd.report import charts, rows
from ssd.report.charts import Chart
from ssd.report.rows import Variant

VEGA_LITE = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]  # "6.1", from "v6.1.0"
MANY = 8  # variants, from which on the chart of speeds shows all sets together only


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, charts with a caption each, and tables."""

    title: str
    text: Sequence[str] = ()
    charts: Sequence[tuple[str, Chart]] = ()
    tables: Sequence[Table] = ()


@dataclass
class Inputs:
    """The documents of the given files, by kind."""

    benches: list[BenchResult] = field(default_factory=list)
    simulated: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (file's name, document)
    quality: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Inputs:
        """Raises SsdError for a file that is no result."""
        found = cls()
        for path in paths:
            document = read_document(path)
            if document["what"] == "simulated":
                check_kind(path, document, "simulated")
                with naming_what_lacks(path):
                    for row in document["rows"]:
                        for name in ("mode", "lookahead", "budget", "batch"):
                            row["setting"][name]
                        for name in ("tokens_per_s", "half_width", "tokens_per_round", "round_ms", "hit_rate", "break_even"):
                            row[name]
                    document["times_ms"]["verify"]
                found.simulated.append((path.stem, document))
            elif document["what"] == "quality":
                with naming_what_lacks(path):
                    _ = [(each["perplexity"], each["megabytes"], each["agreement"]) for each in document["quality"].values()]
                found.quality.append((path.stem, document))
            else:
                found.benches.append(BenchResult.of(path, document))
        return found


def page_of(inputs: Inputs) -> str:
    """The HTML. Raises SsdError for results that cannot be compared."""
    sections: list[Section] = []
    if inputs.benches:
        variants = rows.variants_of(inputs.benches)
        sections += _measured(variants)
    sections += [_simulated(*each) for each in inputs.simulated]
    sections += [_quality(*each) for each in inputs.quality]
    if inputs.benches:
        sections.append(_made_on(inputs.benches))
    named = [*(b.name for b in inputs.benches), *(name for name, _ in (*inputs.simulated, *inputs.quality))]
    specs = [chart for section in sections for _, chart in section.charts]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    files = resources.files("ssd.report") / "page"
    return environment.from_string((files / "report.html").read_text(encoding="utf-8")).render(
        title=", ".join(named),
        version=__version__,
        style=(files / "style.css").read_text(encoding="utf-8"),
        script=vl_convert.javascript_bundle((files / "charts.js").read_text(encoding="utf-8"), VEGA_LITE),
        sections=sections,
        specs=json.dumps(specs, allow_nan=False).replace("<", "\\u003c"),  # no text of a result ends the script
    )


def _measured(variants: Sequence[Variant]) -> Iterator[Section]:
    yield _speeds(variants)
    yield _rounds(variants)
    timelines = [(v.label, spans) for v in _one_of_each_mode(variants) if (spans := rows.timeline(v))]
    if timelines:
        text = "The first variant of each mode. The wheel zooms into a chart, dragging moves it, and a double click resets it."
        yield Section("A few rounds", [text], [(label, charts.timeline(spans, label)) for label, spans in timelines])
    if accepted := rows.accepted_positions(variants):
        text = "How often the target accepts a drafted token, if it accepted all before it in the same speculation."
        yield Section("Acceptance by position", [text], [("", charts.accepted(accepted))])
    if by_accepted := rows.hits_by_accepted(variants):
        yield _hits(variants, by_accepted)
    if gains := list(rows.gains(variants)):
        yield _gains(gains)
    if ablations := rows.ablations(variants):
        text = f"Of {rows.broadest(variants)}. Each chart varies one option; the others are equal along a line."
        yield Section("What each option does", [text], [(n, charts.ablation(each, n)) for n, each in ablations.items()])


def _speeds(variants: Sequence[Variant]) -> Section:
    found = rows.speeds(variants)
    few = len(variants) <= MANY
    shown = [row for row in found if few or row["set"] == rows.broadest(variants)]
    text = [
        "A dot is the mean decode rate of the sequences, without prefill and first token; the line is its 95 % interval. A tick is "
        "the floor: the rate if a round took no longer than one read of the target's weights. In the table, tokens/s is the median "
        "of the sequences, and the pooled rate is all tokens over all time."
    ]
    if not few:
        text.append(f"The chart shows {rows.broadest(variants)}; the table has every set.")
    head = ("set", "variant", "tokens/s", "pooled", "95 % of the mean", "over the first (95 %)", "p", "of the floor", "tokens a round",
            "hit rate", "first token, s", "same tokens")  # fmt: skip
    body = [
        (
            row["set"],
            row["variant"],
            figure(row["tokens_per_s"]),
            figure(row.get("pooled")),
            f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['over_first']:.2f} ({row['over_first_95'][0]:.2f} to {row['over_first_95'][1]:.2f})"
            if row.get("over_first")
            else figure(None),
            "< 0.001" if (p := row.get("p")) is not None and p < 0.001 else figure(p, digits=3),
            percent(row["tokens_per_s"] / row["floor"] if "floor" in row else None),
            figure(row.get("tokens_per_round"), digits=2),
            percent(row.get("hit_rate")),
            figure(row.get("first_token_s"), digits=3),
            {None: figure(None), True: "yes", False: "no"}[row.get("identical")],
        )
        for row in found
    ]
    return Section("Speed", text, [("", charts.speed(shown))], [Table(head, body)])


def _rounds(variants: Sequence[Variant]) -> Section:
    found = rows.round_parts(variants)
    text = [
        "Medians of each part over all sets. The fallback counts with the share of rounds that wait for it. The rest is what the "
        "parts leave of the mean round: look-ups, reports and the host."
    ]
    head = (
        "variant",
        "round, ms",
        "T_v, ms",
        "T_v alone, ms",
        "T_d, ms",
        "hidden, ms",
        "T_b, ms",
        "rest, ms",
        "unused branches",
    )
    body = [
        (
            row["variant"],
            *(
                figure(row[name], digits=2)
                for name in ("round_ms", "verify_ms", "alone_ms", "draft_ms", "hidden_ms", "fallback_ms")
            ),
            figure(row["parts"]["rest"], digits=2),
            figure(row["branches_unused"]),
        )
        for row in found
    ]
    return Section("Where a round's time goes", text, [("", charts.round_parts(found))], [Table(head, body)])


def _hits(variants: Sequence[Variant], by_accepted: Sequence[rows.Row]) -> Section:
    curves = list(rows.hit_curves(variants))
    found = [("after each number of accepted tokens", charts.hits_by_accepted(by_accepted))]
    tables = []
    if curves:
        found.append(("against the number of guesses; the lines are the fits", charts.hit_curves(curves)))
        body = [(c.label, f"{c.first_miss:.2f}", f"{c.decay:.2f}") for c in curves]
        tables.append(Table(("variant", "c", "r"), body))
    text = [
        "A hit is a round whose speculation had been prepared. With F guesses for an accepted count, the next token is among them "
        "with the chance h(F), and the fit is 1 − h(F) = c / F^r."
    ]
    return Section("Hit rate", text, found, tables)


def _gains(gains: Sequence[rows.Gain]) -> Section:
    text = [
        "A dot is a prompt. The line is the speed model with the medians of this run, and the dashed line across is the break-even "
        "hit rate."
    ]
    body = [(g.label, g.over, "no rate is enough" if g.break_even is None else percent(g.break_even)) for g in gains]
    return Section("Speed against hit rate", text, [("", charts.gain(gains))], [Table(("variant", "over", "break-even"), body)])


def _simulated(name: str, document: dict[str, Any]) -> Section:
    ran = document["rows"]
    times = ", ".join(f"{part} {ms:g}" for part, ms in document["times_ms"].items())
    text = [f"{name} is simulated: nothing was decoded for it. Times in ms: {times}."]
    lines = [
        {
            "variant": row["setting"]["mode"] + (f", B = {row['setting']['budget']}" if row["setting"]["budget"] else ""),
            "lookahead": row["setting"]["lookahead"],
            "tokens_per_s": row["tokens_per_s"],
        }
        for row in ran
        if row["setting"]["mode"] != "ar"
    ]
    head = ("mode", "K", "B", "batch", "tokens/s (simulated)", "tokens a round", "ms a round", "hit rate", "break-even")
    body = [
        (
            (of := row["setting"])["mode"],
            *(str(of[n] or figure(None)) for n in ("lookahead", "budget", "batch")),
            f"{row['tokens_per_s']:.1f} ± {row['half_width']:.1f}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['round_ms']:.2f}",
            percent(row["hit_rate"]),
            percent(row["break_even"]),
        )
        for row in ran
    ]
    return Section(f"Simulated: {name}", text, [("", charts.simulated(lines))], [Table(head, body)])


def _quality(name: str, document: dict[str, Any]) -> Section:
    text = [f"{name}: perplexity on a text, and how often a format's likeliest token is the first format's."]
    body = [
        (form, f"{each['megabytes']:.0f}", f"{each['perplexity']:.3f}", f"{each['agreement']:.1%}")
        for form, each in document["quality"].items()
    ]
    return Section("Quality of weight formats", text, (), [Table(("weights", "MB", "perplexity", "same top token"), body)])


def _made_on(benches: Sequence[BenchResult]) -> Section:
    """Machine, versions, data and settings."""
    tables = []
    for bench in benches:
        facts = [(name, str(value)) for name, value in bench.machine.items() if isinstance(value, str | int)]
        rates = bench.machine["read_bandwidth_bytes_per_s"].items()
        facts += [(f"memory read, {on if on == 'gpu' else f'{on} threads'}", f"{rate / 1e9:.1f} GB/s") for on, rate in rates]
        tables.append(Table(("machine", bench.name), [*facts, ("runs", str(bench.runs))]))
        body = [
            (
                name,
                str(each["prompts"]),
                _range([n for turn in bench.turns if turn.set == name for n in turn.prompt_tokens]),
                _range([n for turn in bench.turns if turn.set == name for n in turn.tokens]),
                each["sha256"][:16],
            )
            for name, each in bench.sets.items()
        ]
        tables.append(Table(("set", "prompts", "prompt tokens", "output tokens", "sha256"), body))
        tables += _settings(bench)
    return Section("Machine, prompts and settings", (), (), tables)


def _settings(bench: BenchResult) -> Iterator[Table]:
    """The options on which variants differ, then those that are the same for all."""
    turns = {turn.variant: turn for turn in bench.turns}
    sizes = {"target, MB a pass": "weight_bytes", "draft, MB a pass": "draft_weight_bytes"}
    values = {
        name: {option: _told(value) for option, value in options.items()}
        | {title: figure(size and size / 1e6) for title, field in sizes.items() for size in (getattr(turns[name], field),)}
        for name, options in bench.variants.items()
        if name in turns
    }
    first = next(iter(values.values()))
    differ = [option for option in first if any(each[option] != first[option] for each in values.values())]
    yield Table(("variant", *differ), [(name, *(each[option] for option in differ)) for name, each in values.items()])
    yield Table(("option", "of all variants"), [(option, first[option]) for option in first if option not in differ])


def _one_of_each_mode(variants: Sequence[Variant]) -> list[Variant]:
    return list({variant.mode: variant for variant in reversed(variants)}.values())[::-1]


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else figure(None)


def _told(value: Any) -> str:
    return figure(None) if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
