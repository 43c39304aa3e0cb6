"""Times of every phase of a round: for the stats, for a timeline in Chrome's trace format, and as NVTX ranges."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
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
    """One phase. start, end: seconds on time.perf_counter's clock."""

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


Marked = tuple[Span, int, int]  # a span of a recorded program, and the numbers of the marks at its ends


class Trace:
    """Measures spans. It keeps them after a call of `record`."""

    def __init__(self) -> None:
        self._recorded: list[Span] | None = None
        self._later: list[Callable[[], Span]] = []
        self._muted = False
        self._marking: tuple[Callable[[], int], list[Marked]] | None = None
        self._nvtx = _nvtx()

    def record(self) -> None:
        """Keep every span from now on."""
        self._recorded, self._later = [], []

    @property
    def recording(self) -> bool:
        return self._recorded is not None

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """A context in an NVTX range of this name."""
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
        if self._marking is not None:
            mark, marked = self._marking
            begin = mark()
            yield span
            marked.append((span, begin, mark()))
            return
        with self.named(f"{lane}: {name}"):
            span.start = time.perf_counter()
            try:
                yield span
            finally:
                span.end = time.perf_counter()
        self.keep(span)

    def keep(self, span: Span) -> None:
        """Add a span to the record, if there is one."""
        if self._recorded is not None and not self._muted:
            self._recorded.append(span)

    def keep_later(self, read_span: Callable[[], Span]) -> None:
        """Add a span that has not ended yet.

        read_span: blocks until it has ended, and keeps it; called when the spans are read.
        """
        if self._recorded is not None and not self._muted:
            self._later.append(read_span)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """A context in which spans are measured but not kept: their times would be those of enqueueing only."""
        was_muted, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = was_muted

    @contextmanager
    def marking(self, mark: Callable[[], int]) -> Iterator[list[Marked]]:
        """A context in which a program is recorded. Its spans are not measured; each end of a span calls `mark`.

        mark: returns the number of this point in the program. Yields the list to which the spans are added.
        """
        marked: list[Marked] = []
        self._marking = mark, marked
        try:
            yield marked
        finally:
            self._marking = None

    def keep_marked(self, marked: list[Marked], times: Sequence[float]) -> None:
        """Keep a program's spans. times: of the marks, by their numbers; 0 for a mark that was not reached."""
        for span, begin, end in marked:
            if times[end] > 0:
                self.keep(Span(span.lane, span.name, times[begin], times[end], dict(span.details)))

    @property
    def spans(self) -> list[Span]:
        """Every span recorded so far, in the order of their starts. Blocks until the spans in flight have ended."""
        later, self._later = self._later, []
        for read_span in later:
            read_span()
        return sorted(self._recorded or [], key=lambda span: span.start)

    def timeline(self) -> dict[str, Any]:
        """The recorded spans in Chrome's trace format, which Perfetto opens too: two lanes, target and draft; times in µs."""
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
