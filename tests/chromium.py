"""Tests of pages need the distribution's Chromium. $SSD_REQUIRE_BROWSER=1 makes it a failure if there is none.

Fixtures are in conftest.py. A module of such tests calls `skip_without` before it imports from playwright.
"""

from __future__ import annotations

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def skip_without(*packages: str) -> None:
    """Skip the whole module if a browser, playwright or one of these packages is not here."""
    if os.environ.get("SSD_REQUIRE_BROWSER") == "1":
        return
    for package in (*packages, "playwright", "axe_playwright_python"):
        pytest.importorskip(package)
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here", allow_module_level=True)
