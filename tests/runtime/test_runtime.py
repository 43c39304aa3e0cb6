"""Executors, the trace, and the available memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd.runtime.executor import EagerExecutor
from ssd.runtime.memory import available_memory
from ssd.runtime.paced import PacedModel, paced
from ssd.runtime.trace import Span, Trace


class Clock:
    """A clock that advances only during work and sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        for module in modules:
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> str:
        self.now += seconds
        return "done"


# Executors --------------------------------------------------------------------------------------------------------------------


def model_that_works(clock: Clock, seconds: float) -> Any:
    """A model whose passes take this long, with or without logits."""
    passing = SimpleNamespace(config=None, dtype=None, device=None, vocab_size=0)
    passing.forward = passing.next_logits = lambda *arguments: clock.work(seconds)
    passing.logits = lambda hidden: hidden
    return passing


@pytest.mark.parametrize("least", [0.200, 0.024])
@pytest.mark.parametrize("method", ["forward", "next_logits"])
def test_a_paced_pass_waits_for_the_rest_of_its_minimum_time(
    monkeypatch: pytest.MonkeyPatch, method: str, least: float
) -> None:
    clock = Clock(monkeypatch, "ssd.runtime.paced")
    assert getattr(PacedModel(model_that_works(clock, 0.010), 1e3 * least), method)(None, None) == "done"
    assert clock.slept == [pytest.approx(least - 0.010)]


def test_a_pass_slower_than_its_pace_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ssd.runtime.paced")
    PacedModel(model_that_works(clock, 0.030), 24).next_logits(None, None)
    assert clock.slept == []


def test_a_model_without_a_pace_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ssd.runtime.paced")
    assert paced(model_that_works(clock, 0.010), None).forward(None, None) == "done"
    assert (clock.slept, clock.now) == ([], pytest.approx(100.010))


def test_a_program_runs_only_when_a_flag_is_set() -> None:
    executor = EagerExecutor(Trace())
    ran: list[str] = []
    executor.when(torch.tensor([False, True]), lambda: ran.append("one is set"))
    executor.when(torch.tensor([False, False]), lambda: ran.append("none is set"))
    assert ran == ["one is set"]


# Trace ------------------------------------------------------------------------------------------------------------------------


def test_a_span_lasts_as_long_as_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "ssd.runtime.trace")
    with Trace().span("target", "verify") as span:
        clock.work(0.025)
    assert span.ms == pytest.approx(25)


def test_a_span_ends_when_its_phase_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, trace = Clock(monkeypatch, "ssd.runtime.trace"), Trace()

    def fail() -> None:
        with trace.span("draft", "speculate") as span:
            spans.append(span)
            clock.work(0.010)
            raise RuntimeError

    spans: list[Span] = []
    with pytest.raises(RuntimeError):
        fail()
    assert spans[0].ms == pytest.approx(10)


@pytest.mark.parametrize(
    "other,overlap", [((0.0, 1.0), 0), ((0.5, 1.5), 500), ((1.2, 1.4), 200), ((0.0, 9.0), 1000), ((2.0, 3.0), 0)]
)
def test_spans_overlap_by_what_they_share(other: tuple[float, float], overlap: float) -> None:
    assert Span("target", "a", 1.0, 2.0).overlap_ms(Span("draft", "b", *other)) == pytest.approx(overlap)


def test_no_span_is_kept_until_recording_begins(tmp_path: Path) -> None:
    trace = Trace()
    with trace.span("target", "prefill"):
        pass
    trace.record()
    with trace.span("target", "verify"):
        pass
    trace.write(tmp_path / "trace.json")
    assert [event["name"] for event in phases(tmp_path / "trace.json")] == ["verify"]


def test_spans_come_by_start_and_those_still_in_flight_are_asked_for_once() -> None:
    trace, asked = Trace(), []
    late, early = Span("draft", "look up", 2.0, 3.0), Span("target", "verify", 1.0, 4.0)

    def ask() -> Span:
        asked.append(early)
        trace.keep(early)
        return early

    assert trace.spans == []
    trace.record()
    trace.keep(late)
    trace.keep_later(ask)
    assert trace.spans == [early, late]
    assert trace.spans == [early, late]
    assert asked == [early]


def test_a_timeline_has_a_lane_for_each_role_and_times_in_microseconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, trace = Clock(monkeypatch, "ssd.runtime.trace"), Trace()
    trace.record()
    with trace.span("target", "verify", batch=2):
        clock.work(0.004)
        with trace.span("draft", "look up") as span:
            clock.work(0.001)
            span.details.update(hits=1, misses=1)
    trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(lanes.values()) == ["draft", "target"]
    verify, look_up = phases(tmp_path / "trace.json")
    assert (lanes[verify["tid"]], verify["ts"], verify["dur"]) == ("target", 0, pytest.approx(5000))
    assert (lanes[look_up["tid"]], look_up["ts"], look_up["dur"]) == ("draft", pytest.approx(4000), pytest.approx(1000))
    assert (verify["args"], look_up["args"]) == ({"batch": 2}, {"hits": 1, "misses": 1})


def phases(path: Path) -> list[dict]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


# Memory -----------------------------------------------------------------------------------------------------------------------

MEMINFO = "MemTotal:       32768 kB\nMemFree:          512 kB\nMemAvailable:   16384 kB\n"


@pytest.mark.parametrize(
    "limit,used,cache,expected",
    [
        ("", "", "", 16384 * 1024),  # no container
        ("max\n", "1024\n", "", 16384 * 1024),  # a container without a limit
        ("10000000\n", "4000000\n", "", 6_000_000),
        (
            "10000000\n",
            "4000000\n",
            "anon 5\ninactive_file 3000000\nactive_file 7\n",
            9_000_000,
        ),  # its page cache can be reclaimed
        ("10000000\n", "12000000\n", "", 0),
        ("10000000000\n", "1000000\n", "", 16384 * 1024),
    ],
)
def test_available_memory_is_the_smaller_of_machine_and_container(
    monkeypatch: pytest.MonkeyPatch, limit: str, used: str, cache: str, expected: int
) -> None:
    files = {"meminfo": MEMINFO, "memory.max": limit, "memory.current": used, "memory.stat": cache}
    monkeypatch.setattr("ssd.runtime.memory._read", lambda path: files.get(path.name, ""))
    assert available_memory() == expected


def test_without_meminfo_available_memory_comes_from_sysconf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd.runtime.memory._read", lambda path: "")
    monkeypatch.setattr("ssd.runtime.memory.os.sysconf", {"SC_AVPHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory() == 7 * 4096
