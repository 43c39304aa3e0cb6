"""The file of outcomes that `pytest --results DIR` writes, for the pages that profiling/tables.py makes.

Each test of an op counts for every op that it called through ops/backend.py. The file is written anew after each test, so that
a run that is cut off keeps the outcomes so far.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ops import backend

PROFILING = Path(__file__).parents[1] / "profiling"


class Results:
    """A pytest plugin.

    part: added to the file's name, where several processes share a run. writes: False in a worker of pytest-xdist.
    """

    def __init__(self, folder: Path, part: str | None = None, writes: bool = True) -> None:
        self.folder, self.part, self.writes = folder, part, writes
        self.outcomes: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.failed: list[str] = []
        self.ops: dict[str, Counter[str]] = {}
        self._machine: dict[str, Any] | None = None

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
        self._count(report)
        self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes["failed"] += 1
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._write(**({"blocks": largest_blocks()} if backend.chosen.name == "emulator" else {}))

    def _count(self, report: pytest.TestReport) -> None:
        self.outcomes[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
            return
        if report.failed:
            self.failed.append(report.nodeid)
        for op in dict(report.user_properties).get("ops", ()):
            self.ops.setdefault(op, Counter(passed=0, failed=0))[report.outcome] += 1

    def _write(self, **more: Any) -> None:
        if not self.writes:
            return
        with profiling_on_the_path():
            from common.results import CPU_TESTS, EMULATOR_TESTS, GPU_TESTS, write_result

            from ssd.bench import machine

        name = backend.chosen.name
        if self._machine is None:  # once, and early: a GPU that a test has broken does not answer any more
            self._machine = machine.describe_gpu() if name == "gpu" else machine.describe()
        kind = {"cpu": CPU_TESTS, "emulator": EMULATOR_TESTS, "gpu": GPU_TESTS}[name]
        result: dict[str, Any] = {
            "what": kind.what,
            "machine": self._machine,
            "outcomes": self.outcomes,
            "skipped": self.skipped,
            "failed": self.failed,
            kind.figures: self.ops,
        }
        write_result(result | more, self.folder, f"{kind.what}-{self.part}" if self.part else None)


@contextmanager
def profiling_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(PROFILING))
    try:
        yield
    finally:
        sys.path.remove(str(PROFILING))


def largest_blocks() -> dict[str, dict[str, int]]:
    """The largest block of each kernel on the emulator: (threads, bytes of shared memory), by ptxas.py's names."""
    with profiling_on_the_path():
        import ptxas

    names, threads, shared_bytes = torch.ops.ssd_emulator.launched()
    readable = ptxas.readable([f"_Z{name}" for name in names])
    return {
        name: {"threads": count, "shared_bytes": size}
        for name, count, size in zip(readable, threads, shared_bytes, strict=True)
    }
