"""Settings of all tests: Hypothesis tries the same examples on every machine, without deadlines.

Acceptance tests run only with --acceptance. --backend chooses the back end of the op tests (ops/backend.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from chromium import CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

settings.register_profile("ssd", deadline=None, derandomize=True, database=None, max_examples=20, print_blob=True)
settings.load_profile("ssd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--acceptance", action="store_true", help="run the acceptance grids too: hours, on the prompts in $SSD_PROMPTS"
    )
    parser.addoption(
        "--backend", choices=("cpu", "emulator", "gpu"), default="cpu", help="what the tests of tests/ops run the ops on"
    )
    parser.addoption("--results", type=Path, metavar="DIR", help="folder for a file of outcomes (results.py)")
    parser.addoption("--results-part", metavar="NAME", help="name of this part of a run that is made in several processes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acceptance: a whole grid on a real model, which takes hours; needs --acceptance")
    if config.getoption("--backend") != "cpu":
        from ops import backend

        backend.choose(config.getoption("--backend"))
        settings.register_profile("backend", settings(max_examples=backend.chosen.examples))
        settings.load_profile("backend")
    if config.getoption("--results"):
        from results import Results

        is_worker = hasattr(config, "workerinput")  # of pytest-xdist, whose main process gets every report
        config.pluginmanager.register(Results(config.getoption("--results"), config.getoption("--results-part"), not is_worker))


def pytest_report_header(config: pytest.Config) -> str:
    return f"back end of the op tests: {config.getoption('--backend')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def asked_for(item: pytest.Item) -> bool:
        if "acceptance" in item.keywords and not config.getoption("--acceptance"):
            return False
        return item.path.parent.name != "emulator" or config.getoption("--backend") == "emulator"

    config.hook.pytest_deselected(items=[item for item in items if not asked_for(item)])
    items[:] = [item for item in items if asked_for(item)]


@pytest.fixture
def eager_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run eager rounds, for a test that replaces Python code of a program: a recorded program calls it only once."""
    monkeypatch.setenv("SSD_EAGER", "1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty browser profile. Fails the test if the page raises an error or writes to the console."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    one, said = context.new_page(), []
    one.on("pageerror", lambda error: said.append(str(error)))
    one.on("console", lambda message: said.append(message.text))
    yield one
    context.close()
    assert [text for text in said if "Failed to load resource" not in text and "net::ERR" not in text] == []
