"""The sanitizers find the mistakes that are planted in an extension built with them (`make sanitize`)."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ssd  # noqa: F401 (loads torch's libraries first)
from ssd import _C

RUN = "import torch, ssd; from ssd import _C; torch.set_num_threads(2); {}"


def report(call: str) -> str:
    """What the sanitizer says of this call, in a process of its own, which it ends."""
    done = subprocess.run([sys.executable, "-P", "-c", RUN.format(call)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


pytestmark = pytest.mark.skipif(not hasattr(_C, "plant_race"), reason="this extension is built without sanitizers")


@pytest.fixture
def kind() -> str:
    """The sanitizer of the extension: "address" or "thread"."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return "address" if "libasan" in maps.read() else "thread"


def test_an_overrun_is_found(kind: str) -> None:
    if kind != "address":
        pytest.skip("the thread sanitizer does not look for it")
    assert "heap-buffer-overflow" in report("_C.plant_overrun(16)")


def test_a_race_is_found(kind: str) -> None:
    if kind != "thread":
        pytest.skip("the address sanitizer does not look for it")
    assert "data race" in report("[_C.plant_race(100_000) for _ in range(50)]")
