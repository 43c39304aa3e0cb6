"""Settings every test shares: properties are tried on the same examples on every machine, and never against a clock.

Acceptance tests run only when they are asked for, with --acceptance.
"""

import pytest
from hypothesis import settings

settings.register_profile("ssd", deadline=None, derandomize=True, database=None, max_examples=20, print_blob=True)
settings.load_profile("ssd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--acceptance", action="store_true", help="run the acceptance grids too: hours, on the prompts in $SSD_PROMPTS"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acceptance: a whole grid on a real model, which takes hours; needs --acceptance")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--acceptance"):
        asked_for = [item for item in items if "acceptance" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if "acceptance" in item.keywords])
        items[:] = asked_for
