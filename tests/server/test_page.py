"""The chat page in the distribution's Chromium."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from chromium import skip_without

skip_without("fastapi")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402

from server.conftest import MakeEngine  # noqa: E402
from server.live import Live, live  # noqa: E402
from server.scripted import Script, rounds_of, scripted  # noqa: E402

COMPLETE = "The answer is complete."
PROSE = [f" word{index}" if index % 9 else f".\n\nPart{index}" for index in range(1, 60)]


def ask(page: Page, text: str = "Tell me.", ended: str | None = COMPLETE) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    if ended is not None:
        expect(page.get_by_role("status")).to_have_text(ended, timeout=30_000)


def kept(page: Page) -> list[dict[str, Any]]:
    """The messages of the first conversation in the browser's storage."""
    found: list[dict[str, Any]] = json.loads(page.evaluate("localStorage.getItem('ssd.conversations')"))[0]["messages"]
    return found


def shown(page: Page) -> list[tuple[int, str, str]]:
    """The answer's text: round, origin and characters of each span."""
    spans = "[...document.querySelectorAll('.assistant .body span')]"
    return [(int(a), b, c) for a, b, c in page.evaluate(spans + ".map((s) => [s.dataset.round, s.className, s.textContent])")]


def test_answers_stream_and_a_reload_keeps_them(page: Page) -> None:
    with scripted(Script(rounds_of(["One", *PROSE]), wait=0.05)) as address:
        page.goto(address)
        ask(page, ended=None)
        body = page.locator(".assistant .body")
        expect(body).to_contain_text("word3")
        early = body.text_content() or ""
        expect(page.get_by_role("status")).to_have_text(COMPLETE, timeout=30_000)
        late = body.text_content() or ""
        assert early in late and len(late) > len(early)
        before = shown(page)
        page.reload()
        assert shown(page) == before
        expect(page.get_by_role("button", name="Tell me.")).to_be_visible()


def test_stop_keeps_what_came(page: Page) -> None:
    with scripted(Script(rounds_of(["One", *PROSE]), wait=0.2)) as address:
        page.goto(address)
        ask(page, ended=None)
        expect(page.locator(".assistant .body")).to_contain_text("word3")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("The answer was stopped; what came is kept.")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        text = kept(page)[1]["content"]
        assert "word3" in text and "word50" not in text


def test_spans_and_bars_are_those_of_the_field(page: Page) -> None:
    tokens = ["One", *PROSE, " 🙂", " a🙂b", " **bold", "**", " end"]
    rounds = rounds_of(tokens)
    with scripted(Script(rounds)) as address:
        page.goto(address)
        ask(page)
        # The same characters by round and origin, white space and marks of markdown left out.
        expected: dict[tuple[int, str], str] = {}
        for number, (text, one) in enumerate(rounds):
            at = 0
            for token in one["tokens"]:
                part = text[at : at + token["characters"]]
                at += token["characters"]
                expected[number, token["origin"]] = expected.get((number, token["origin"]), "") + part
        found: dict[tuple[int, str], str] = {}
        for number, origin, text in shown(page):
            found[number, origin] = found.get((number, origin), "") + text
        bare = {key: re.sub(r"[\s*]", "", text) for key, text in expected.items()}
        assert {key: re.sub(r"\s", "", text) for key, text in found.items()} == {
            key: text for key, text in bare.items() if text
        }
        bars = page.locator(".rounds button")
        assert bars.count() == len(rounds)
        for number in (1, 2):
            accepted, hit = rounds[number][1]["accepted"], rounds[number][1]["hit"]
            name = bars.nth(number).get_attribute("aria-label") or ""
            assert f"{accepted} accepted" in name and ("prepared in the cache" if hit else "drafted after a miss") in name
            bars.nth(number).hover()
            lit = page.evaluate("[...document.querySelectorAll('.lit')].map((span) => span.dataset.round)")
            assert lit and set(lit) == {str(number)}


def test_rounds_are_those_of_a_real_server(page: Page, engine: MakeEngine) -> None:
    with live(engine(mode="ssd", fan_out="uniform", fallback="neural")) as served:
        page.goto(served.url)
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Most tokens").fill("60")
        ask(page, "one")
        stream = {"stream": True, "stream_options": {"include_speculation": True}}
        response = served.chat("one", max_tokens=60, **stream)
        lines = [json.loads(line[6:]) for line in response.text.splitlines() if line and not line.endswith("[DONE]")]
        said = [event["choices"][0]["speculation"] for event in lines if "speculation" in event["choices"][0]]
    answer = kept(page)[1]["answers"][0]
    letters = ["".join(token["origin"][0] for token in each["tokens"]) for each in said]
    assert [each[:4] for each in answer["rounds"]] == [
        [each["proposed"], each["accepted"], each["hit"], origins] for each, origins in zip(said, letters, strict=True)
    ]
    bars = page.locator(".rounds button")
    assert bars.count() == len(said)
    assert page.locator(".rounds .hit").count() == sum(each["hit"] is True for each in said) > 0


def test_compare_answers_twice(page: Page, served: Live) -> None:
    page.goto(served.url)
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("40")
    page.get_by_label("Compare with").check()
    ask(page, "one")
    plain, speculative = kept(page)[1]["answers"]
    assert plain["content"] == speculative["content"] != ""
    assert all(each[0] == 0 for each in plain["rounds"]) and any(each[0] > 0 for each in speculative["rounds"])
    expect(page.get_by_text("tokens/s")).to_have_count(2)
    expect(page.get_by_role("heading", name="Token by token")).to_be_visible()


def test_a_server_that_dies_is_said_and_the_text_kept(page: Page) -> None:
    lost = "The connection was lost before the answer was complete; what came is kept."
    with scripted(Script(rounds_of(["One", *PROSE]), dies=True)) as address:
        page.goto(address)
        ask(page, ended=lost)
        assert "word50" in (page.locator(".assistant .body").text_content() or "")
        expect(page.locator(".assistant .error")).to_have_text(lost)
    ask(page, "Again", ended="The server cannot be reached; start it, and send again.")
    assert "word50" in kept(page)[1]["content"]


def test_a_models_output_is_never_html(page: Page) -> None:
    bad = "<img src=x onerror=\"document.title='broken'\"> </script><script>document.title='broken'</script> [x](javascript:alert(1))"
    with scripted(Script(rounds_of([*bad, "\n\n```\n", bad, "\n```\n\n", "[", bad, "](https://example.org)"]))) as address:
        page.goto(address)
        ask(page)
        assert page.title() == "ssd"
        assert page.locator("main img, main script, a[href^='javascript']").count() == 0
        assert "onerror=" in (page.locator(".assistant .body").text_content() or "")
        page.reload()
        assert page.title() == "ssd"


def test_ten_thousand_tokens_stay_smooth(page: Page) -> None:
    words = [" word"] * 9_997
    for index in range(0, len(words), 90):
        words[index] = ("\n\n", "\n\n- point\n- ", "\n\n## Title\n\n", "\n\n```\ncode\n```\n\n")[index // 90 % 4]
    with scripted(Script(rounds_of(["One", *words, " end", "."]), wait=0.002)) as address:
        page.goto(address)
        page.evaluate(
            """() => { window.spans = []; let last = performance.now();
            const tick = (now) => { spans.push(now - last); last = now; requestAnimationFrame(tick); };
            requestAnimationFrame(tick); }"""
        )
        ask(page, ended=None)
        expect(page.locator(".assistant .figures")).to_contain_text(re.compile(r"^9\d\d\d tokens"), timeout=60_000)
        page.evaluate("spans.length = 0")
        expect(page.get_by_role("status")).to_have_text(COMPLETE, timeout=60_000)
        frames = page.evaluate("spans")
        assert len(frames) > 10
        assert max(frames[1:]) <= 100, sorted(frames)[-5:]
        assert len(page.locator(".assistant .body").text_content() or "") > 40_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_axe_finds_nothing_serious(page: Page, scheme: Any, width: int) -> None:
    text = ["One", *PROSE, "\n\n```\ncode\n```\n\n", "- a\n- [link](https://example.org)\n"]
    with scripted(Script(rounds_of(text))) as address:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        ask(page)
        if width < 700:
            page.get_by_role("button", name="Menu").click()
            serious(page)
            page.get_by_role("button", name="Menu").click()
        serious(page)


def serious(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []


def test_keyboard_alone(page: Page) -> None:
    with scripted(Script(rounds_of(["One", *PROSE]))) as address:
        page.goto(address)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the link to the message field
        page.keyboard.type("Tell me.")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text(COMPLETE)
        go_to(page, "Round 1|The prompt", back=True)
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        lit = page.evaluate("new Set([...document.querySelectorAll('.lit')].map((span) => span.dataset.round)).size")
        assert lit == 1
        go_to(page, "Regenerate")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text(COMPLETE)
        assert len(kept(page)) == 2
        go_to(page, "Edit", back=True)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Your message")).to_be_focused()
        expect(page.get_by_label("Your message")).to_have_value("Tell me.")
        page.keyboard.type(" And more.")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text(COMPLETE)
        go_to(page, "New chat", back=True)
        page.keyboard.press("Enter")
        expect(page.locator("#conversations li")).to_have_count(2)
        page.on("dialog", lambda dialog: dialog.accept())
        go_to(page, "Delete this one", back=True)
        page.keyboard.press("Enter")
        expect(page.locator("#conversations li")).to_have_count(1)


def go_to(page: Page, name: str, back: bool = False) -> None:
    """Press Tab until the element of this name has the focus."""
    named = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    for _ in range(60):
        if re.match(name, page.evaluate(named).strip()):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"Tab does not reach {name}")


def test_export_is_the_conversation(page: Page) -> None:
    with scripted(Script(rounds_of(["One", *PROSE]))) as address:
        page.goto(address)
        ask(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        assert json.loads(download.value.path().read_text())["messages"] == kept(page)


def test_the_key_is_asked_for(page: Page, engine: MakeEngine) -> None:
    with live(engine(), api_key="secret") as served:
        page.goto(served.url)
        expect(page.get_by_role("status")).to_contain_text("API key")
        page.get_by_label("API key").fill("secret")
        ask(page, "one")
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
