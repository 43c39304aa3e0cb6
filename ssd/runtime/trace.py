"""Timings of every phase of a round: for the stats, for a timeline in Chrome's trace format, and as NVTX ranges of the same names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

LANES = ("target", "draft")


def _nvtx() -> ModuleType | None:
    try:
        import nvtx
    except ImportError:  # only profiling wants it
        return None
    return nvtx if nvtx.enabled() else None  # type: ignore[no-any-return, unused-ignore]


@dataclass
class Span:
    """One phase: seconds of time.perf_counter."""

    lane: str
    name: str
    start: float = 0.0
    end: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        return (self.end - self.start) * 1e3

    def overlap_ms(self, other: Span) -> float:
        return max(0.0, min(self.end, other.end) - max(self.start, other.start)) * 1e3


class Trace:
    """Measures spans; keeps them only when asked to record."""

    def __init__(self) -> None:
        self._recorded: list[Span] | None = None
        self._later: list[Callable[[], Span]] = []
        self._muted = False
        self._nvtx = _nvtx()

    def record(self) -> None:
        """Keep every span from now on."""
        self._recorded, self._later = [], []

    @property
    def recording(self) -> bool:
        return self._recorded is not None

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Within it the host is in an NVTX range of that name."""
        if self._nvtx is None:
            yield
            return
        self._nvtx.push_range(name)
        try:
            yield
        finally:
            self._nvtx.pop_range()

    @contextmanager
    def span(self, lane: str, name: str, **details: Any) -> Iterator[Span]:
        span = Span(lane, name, details=details)
        with self.named(f"{lane}: {name}"):
            span.start = time.perf_counter()
            try:
                yield span
            finally:
                span.end = time.perf_counter()
        self.keep(span)

    def keep(self, span: Span) -> None:
        """Take in a span that was measured elsewhere, if spans are kept."""
        if self._recorded is not None and not self._muted:
            self._recorded.append(span)

    def keep_later(self, ask: Callable[[], Span]) -> None:
        """The same of a span that is not over yet: it is asked for with the spans or the timeline, and kept then."""
        if self._recorded is not None and not self._muted:
            self._later.append(ask)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Within it spans are measured and not kept: where the host only enqueues what they are of."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before

    @property
    def spans(self) -> list[Span]:
        """Every span recorded so far, by start. Blocks until the spans still in flight have ended."""
        later, self._later = self._later, []
        for ask in later:
            ask()
        return sorted(self._recorded or [], key=lambda span: span.start)

    def timeline(self) -> dict[str, Any]:
        """What was recorded in Chrome's trace format, which Perfetto opens too: a target and a draft lane, times in µs."""
        spans = self.spans
        origin = spans[0].start if spans else 0.0
        lanes = [{"name": "thread_name", "ph": "M", "pid": 1, "tid": i, "args": {"name": lane}} for i, lane in enumerate(LANES)]
        events = [
            {
                "name": s.name,
                "ph": "X",
                "pid": 1,
                "tid": LANES.index(s.lane),
                "ts": (s.start - origin) * 1e6,
                "dur": (s.end - s.start) * 1e6,
                "args": s.details,
            }
            for s in spans
        ]
        return {"traceEvents": lanes + events, "displayTimeUnit": "ms"}

    def write(self, path: Path) -> None:
        """Write the timeline as a JSON file."""
        path.write_text(json.dumps(self.timeline()), encoding="utf-8")
