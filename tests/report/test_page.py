"""The page of `ssd report` in the distribution's Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromium import skip_without

skip_without("altair", "vl_convert")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

from report.results import MODES, document  # noqa: E402
from ssd.bench.results import BenchResult  # noqa: E402
from ssd.report.page import Inputs, page_of  # noqa: E402

SIMULATED = {
    "times_ms": {"verify": 10.0},
    "rows": [
        {"setting": {"mode": "ssd", "lookahead": k, "budget": 8, "batch": 1}, "tokens_per_s": 100.0 + k, "half_width": 1.0,
         "tokens_per_round": 2.0, "round_ms": 11.0, "hit_rate": 0.7, "break_even": None}
        for k in (2, 4)
    ],
}  # fmt: skip
QUALITY = {"quality": {"bf16": {"megabytes": 269.0, "perplexity": 10.9, "agreement": 1.0}}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    swept = document()
    swept["variants"]["ssd B=4"] = swept["variants"]["ssd"] | {"budget": 4}
    for part in ("figures", "turns"):
        swept[part] += [each | {"variant": "ssd B=4"} for each in swept[part] if each.get("variant") == "ssd"]
    bench = BenchResult.of(Path("bench.json"), swept)
    inputs = Inputs([bench], [("simulation", SIMULATED)], [("formats", QUALITY)])
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(inputs), encoding="utf-8")
    return path


@pytest.fixture
def shown(page: Page, file: Path) -> Page:
    """The page with all its charts, without a network."""
    page.context.set_offline(True)
    page.goto(file.as_uri())
    expect(page.locator("body")).to_have_attribute("data-drawn", "true", timeout=30_000)
    return page


def test_every_chart_is_drawn(shown: Page) -> None:
    places = shown.locator(".chart")
    assert places.count() == 11  # speed, rounds, three timelines, acceptance, two of hits, gain, an ablation, simulated
    for place in places.all():
        expect(place.locator("svg")).to_have_count(1)
        assert place.locator("svg path").count() > 0
    for mode in MODES:
        expect(shown.get_by_role("cell", name=mode, exact=True).first).to_be_attached()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(shown: Page, scheme: str) -> None:
    shown.emulate_media(color_scheme=scheme)
    found = Axe().run(shown).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_a_narrow_screen_shows_it_without_scrolling_sideways(shown: Page) -> None:
    shown.set_viewport_size({"width": 380, "height": 800})
    expect(shown.locator(".chart svg").first).to_have_js_property("clientWidth", 348)
    assert shown.evaluate("document.documentElement.scrollWidth") == 380


def test_the_wheel_zooms_into_a_timeline(shown: Page) -> None:
    chart = shown.locator("[aria-label^='A timeline of a few rounds of ssd:']").first
    before = chart.text_content()
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    shown.mouse.wheel(0, -300)
    expect(chart).not_to_have_text(before or "")
