"""The page's charts, as Vega-Lite by way of Altair. Text and lines take the page's own colour, so a dark page needs no other
charts; the marks' colours are legible on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from ssd.report.rows import Gain, HitCurve, Row

COLOURS = ["#3987e5", "#e07b39", "#2f9e6e", "#b45fd0", "#c9a227", "#d6516a", "#4fb3bf", "#8a8f98"]
ROW = 22  # pixels of a row of bars
Chart = dict[str, Any]  # Vega-Lite

INK = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12}
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **INK,
        "titleFontWeight": "normal",
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "domainColor": "currentColor",
        "domainOpacity": 0.5,
        "tickColor": "currentColor",
        "tickOpacity": 0.5,
        "labelLimit": 170,
    },
    "legend": {**INK, "orient": "bottom", "columns": 2, "labelLimit": 260, "title": None},
    "range": {"category": COLOURS},
    "rule": {"color": "currentColor"},
    "tick": {"color": "currentColor"},
}


def speed(rows: Sequence[Row]) -> Chart:
    """Means with their intervals; a tick at each floor."""
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("variant:N", sort=None, title=None),
        yOffset=alt.YOffset("set:N", sort=None),
        color=alt.Color("set:N", sort=None),
    )
    tip = _tips("set", "variant", mean=".1f", floor=".1f")
    rate = alt.X("mean:Q", title="tokens/s of a sequence", scale=alt.Scale(zero=True))
    dots = base.mark_point(filled=True, size=60).encode(x=rate, tooltip=tip)
    whiskers = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=alt.Color("set:N", sort=None))
    floors = base.mark_tick(thickness=2, height=10).encode(x="floor:Q", tooltip=tip)
    marks = len({(row["variant"], row["set"]) for row in rows})
    return _finished(alt.layer(whiskers, dots, floors), max(80, 12 * marks), "Tokens per second by variant and set of prompts.")


def round_parts(rows: Sequence[Row]) -> Chart:
    parts = [
        {"variant": row["variant"], "part": part, "ms": ms, "order": order}
        for row in rows
        for order, (part, ms) in enumerate(row["parts"].items())
    ]
    bars = (
        alt.Chart(_data(parts))
        .mark_bar()
        .encode(
            x=alt.X("ms:Q", stack="zero", title="milliseconds of a mean round"),
            y=alt.Y("variant:N", sort=None, title=None),
            color=alt.Color("part:N", sort=None),
            order="order:Q",
            tooltip=_tips("variant", "part", ms=".2f"),
        )
    )
    return _finished(bars, ROW * len(rows), "The parts of a mean round of each variant, in milliseconds.")


def timeline(rows: Sequence[Row], label: str) -> Chart:
    """Two lanes of bars. The wheel zooms, and dragging moves."""
    bars = (
        alt.Chart(_data(rows))
        .mark_bar(stroke="currentColor", strokeWidth=0.4, clip=True)
        .encode(
            x=alt.X("start:Q", title="milliseconds"),
            x2="end:Q",
            y=alt.Y("lane:N", title=None, sort=["target", "draft"], scale=alt.Scale(domain=["target", "draft"])),
            color=alt.Color("phase:N", sort=None, legend=alt.Legend(columns=3)),
            tooltip=_tips("phase", start=".2f", end=".2f"),
        )
        .interactive(bind_y=False)
    )
    return _finished(bars, 90, f"A timeline of a few rounds of {label}: when the target and the draft work.")


def accepted(rows: Sequence[Row]) -> Chart:
    lines = _lines(rows, "position", "position of the drafted token", "accepted", "accepted, if all before it were")
    return _finished(lines, 200, "The share of accepted tokens by position in the speculation.")


def hits_by_accepted(rows: Sequence[Row]) -> Chart:
    lines = _lines(rows, "accepted", "accepted tokens of the round before", "hit_rate", "hit rate")
    return _finished(lines, 200, "The hit rate by the number of tokens that the round before accepted.")


def hit_curves(curves: Sequence[HitCurve]) -> Chart:
    """Misses over guesses, both as logarithms: the law is a straight line."""
    measured = [
        {"variant": curve.label, "guesses": f, "missed": 1 - share}
        for curve in curves
        for f, share in enumerate(curve.shares, 1)
        if share < 1
    ]
    fitted = [
        {"variant": curve.label, "guesses": f, "missed": min(1.0, curve.first_miss * f**-curve.decay)}
        for curve in curves
        for f in range(1, len(curve.shares) + 1)
    ]
    x = alt.X("guesses:Q", scale=alt.Scale(type="log", base=2, nice=False), title="guesses F for one accepted count")
    y = alt.Y(
        "missed:Q", scale=alt.Scale(type="log"), title="share of next tokens outside, 1 − h(F)", axis=alt.Axis(format="%")
    )
    colour = alt.Color("variant:N", sort=None)
    tip = _tips("variant", guesses="d", missed=".1%")
    dots = alt.Chart(_data(measured)).mark_point(filled=True, size=25).encode(x=x, y=y, color=colour, tooltip=tip)
    lines = alt.Chart(_data(fitted)).mark_line(strokeWidth=1).encode(x=x, y=y, color=colour)
    return _finished(alt.layer(lines, dots), 240, "The share of next tokens that are not among the draft's guesses.")


def gain(gains: Sequence[Gain]) -> Chart:
    """A dot for each prompt, a line for the speed model, and a rule at 1."""
    points = [{"variant": g.label, "hit_rate": hit, "speed_up": ratio} for g in gains for hit, ratio in g.points]
    line = [{"variant": g.label, "hit_rate": hit, "speed_up": ratio} for g in gains for hit, ratio in g.line]
    even = [{"variant": g.label, "hit_rate": g.break_even} for g in gains if g.break_even is not None]
    x = alt.X("hit_rate:Q", title="hit rate", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("speed_up:Q", title="speed over sd", scale=alt.Scale(zero=False))
    colour = alt.Color("variant:N", sort=None)
    tip = _tips("variant", hit_rate=".0%", speed_up=".2f")
    layers = [
        alt.Chart(_data([{"one": 1}])).mark_rule(strokeDash=[4, 4]).encode(y="one:Q"),
        alt.Chart(_data(line)).mark_line().encode(x=x, y=y, color=colour),
        alt.Chart(_data(points)).mark_point(filled=True, size=35, opacity=0.7).encode(x=x, y=y, color=colour, tooltip=tip),
    ]
    if even:
        layers.append(alt.Chart(_data(even)).mark_rule(strokeDash=[2, 2]).encode(x=x, color=colour))
    return _finished(alt.layer(*layers), 260, "The speed of ssd over sd against the hit rate.")


def ablation(rows: Sequence[Row], title: str) -> Chart:
    """Lines over numbers; dots over names."""
    numbers = all(isinstance(row["value"], int | float) for row in rows)
    told = [{**row, "value": row["value"] if numbers else str(row["value"])} for row in rows]
    ticks = alt.Axis(values=sorted({row["value"] for row in rows})) if numbers else alt.Axis(labelAngle=0)
    x = alt.X("value:Q", title=title, axis=ticks, scale=alt.Scale(zero=False, padding=20))
    base = alt.Chart(_data(told)).encode(x=x if numbers else alt.X("value:N", sort=None, title=title, axis=ticks))
    colour = alt.Color("group:N", sort=None)
    y = alt.Y("tokens_per_s:Q", title="tokens/s, mean and 95 %", scale=alt.Scale(zero=False))
    tip = _tips("group", "value", tokens_per_s=".1f")
    layers = [base.mark_rule().encode(y="low:Q", y2="high:Q", color=colour)]
    if numbers:
        layers.append(base.mark_line().encode(y=y, color=colour))
    layers.append(base.mark_point(filled=True, size=50).encode(y=y, color=colour, tooltip=tip))
    return _finished(alt.layer(*layers), 220, f"Tokens per second by {title}.")


def simulated(rows: Sequence[Row]) -> Chart:
    """Lines over K, one for each mode and budget."""
    lines = _lines(rows, "lookahead", "lookahead K", "tokens_per_s", "tokens/s of a sequence (simulated)", share=False)
    return _finished(lines, 240, "Simulated tokens per second by lookahead.")


def _lines(rows: Sequence[Row], x: str, x_title: str, y: str, y_title: str, share: bool = True) -> alt.Chart:
    axis = alt.Axis(format="%") if share else alt.Axis()
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=True)
    chart: alt.Chart = (
        alt.Chart(_data(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X(f"{x}:O", title=x_title, axis=alt.Axis(labelAngle=0)),
            y=alt.Y(f"{y}:Q", title=y_title, axis=axis, scale=scale),
            color=alt.Color("variant:N", sort=None),
            tooltip=_tips("variant", x, **{y: ".0%" if share else ".1f"}),
        )
    )
    return chart


def _data(rows: Sequence[Row]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def _tips(*names: str, **numbers: str) -> list[alt.Tooltip]:
    """The lines of a tooltip. names: fields shown as they are. numbers: a format for each other field."""
    told = [alt.Tooltip(f"{name}:N") for name in names]
    return told + [alt.Tooltip(f"{name}:Q", title=name.replace("_", " "), format=form) for name, form in numbers.items()]


def _finished(chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int, description: str) -> Chart:
    """As wide as its place on the page. description: what a screen reader says."""
    whole = chart.properties(width="container", height=height, description=description).configure(**CONFIG)
    document: Chart = whole.to_dict()
    return document
