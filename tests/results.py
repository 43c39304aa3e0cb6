"""With --results DIR, a test run writes a file of its outcomes, from which profiling/tables.py makes pages.

Each test of an op counts for every op that it called through ops/backend.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ops import backend

PROFILING = Path(__file__).parents[1] / "profiling"


class Results:
    """A pytest plugin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.failed: list[str] = []
        self.ops: dict[str, Counter[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        backend.Op.called.clear()
        try:
            return (yield)
        finally:
            item.user_properties.append(("ops", sorted(backend.Op.called)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.outcomes[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
            return
        if report.failed:
            self.failed.append(report.nodeid)
        for op in dict(report.user_properties).get("ops", ()):
            self.ops.setdefault(op, Counter(passed=0, failed=0))[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        sys.path.insert(0, str(PROFILING))
        import machine

        name = backend.chosen.name
        info = machine.describe_gpu() if name == "gpu" else machine.describe()
        result: dict[str, Any] = {
            "what": f"{name}-tests",
            "machine": info,
            "outcomes": self.outcomes,
            "skipped": self.skipped,
            "failed": self.failed,
            "ops": self.ops,
        }
        if name == "emulator":
            result["blocks"] = largest_blocks()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{info['date']}-{machine.slug(info['device'])}-{name}-tests.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def largest_blocks() -> dict[str, dict[str, int]]:
    """The largest block of each kernel that the emulator ran (threads, bytes of shared memory), by profiling/ptxas.py's
    names."""
    import ptxas

    names, threads, shared_bytes = torch.ops.ssd_emulator.launched()
    readable = ptxas.readable([f"_Z{name}" for name in names])
    return {
        name: {"threads": count, "shared_bytes": size}
        for name, count, size in zip(readable, threads, shared_bytes, strict=True)
    }
