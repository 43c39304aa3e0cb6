"""Rounds as graphs on two streams, with the host two rounds ahead: the same tokens and counts as eagerly, in any order that
streams and events allow. The device is a fake (tests/fake_device.py); what is planted here as a mistake must come out in some
order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from engine.cases import FIXED, MakeCaptured, MakeEngine, random_prompts
from fake_device import FakeDevice, HostRead
from ssd import Completion, Engine, SamplingParams
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.state import SequenceState
from ssd.runtime.captured import CapturedExecutor
from ssd.runtime.trace import Trace

LENGTHS = (30, 12, 25, 18, 9, 1, 22, 3, 14)  # more requests than slots; some end while others are running
PROMPTS = random_prompts((3, 20, 1, 9, 40, 17, 5, 16, 2))
GREEDY = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in LENGTHS]
SAMPLED = [SamplingParams(temperature=1.0, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]


def figures(completions: list[Completion]) -> list[Any]:
    """Tokens, and all statistics."""
    return [
        (
            c.token_ids,
            c.finish_reason,
            c.degraded,
            c.text,
            s.rounds,
            s.hits_per_k,
            s.accepted_at,
            s.rank_counts,
            s.proposed_counts,
        )
        for c in completions
        for s in [c.stats]
    ]


CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ar": ("ar", None, {}),
    "sd": ("sd", "draft", {}),
    "sd, tree": ("sd", "draft", {"tree": (2, 2, 1)}),
    "sd, n-gram": ("sd", "ngram", {}),
    "ssd": ("ssd", "draft", FIXED),
    "ssd, trimmed": ("ssd", "trimmed", FIXED | {"saguaro_c": 0.3, "lookahead": 3, "budget": 5}),
    "ssd, n-gram": ("ssd", "draft", FIXED | {"fallback": "ngram"}),
}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", CASES)
def test_every_order_gives_the_tokens_and_counts_of_eager_rounds(
    engine: MakeEngine, captured: MakeCaptured, case: str, params: list[SamplingParams]
) -> None:
    mode, draft, options = CASES[case]
    expected = figures(engine(mode, draft, max_batch=3, **options).decode(PROMPTS, params))
    for seed in range(4):
        one, _ = captured(mode, seed, draft, max_batch=3, **options)
        assert figures(one.decode(PROMPTS, params)) == expected
        assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("ar", "sd, n-gram")])
def test_two_devices_give_the_tokens_and_counts_of_one(
    engine: MakeEngine, captured: MakeCaptured, case: str, params: list[SamplingParams]
) -> None:
    """Each role has its own tables, and learns about the other's only from the tables that are sent."""
    mode, draft, options = CASES[case]
    expected = figures(engine(mode, draft, max_batch=3, **options).decode(PROMPTS, params))
    apart = options | {"draft_device": "cpu", "max_batch": 3}
    assert figures(engine(mode, draft, **apart).decode(PROMPTS, params)) == expected
    for seed in range(4):
        one, _ = captured(mode, seed, draft, **apart)
        assert one.core.loop.link.draft_side.state is not one._assembly.state  # type: ignore[union-attr]
        assert figures(one.decode(PROMPTS, params)) == expected
        assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity


def test_a_measured_fan_out_and_fallback_change_no_token(engine: MakeEngine, captured: MakeCaptured) -> None:
    """The host's measurements reach the rounds later than in eager mode."""
    expected = [c.token_ids for c in engine("ar").decode(PROMPTS, GREEDY)]
    for seed in range(4):
        one, _ = captured("ssd", seed, max_batch=3)
        found = one.decode(PROMPTS, GREEDY)
        assert [c.token_ids for c in found] == expected
        assert sum(h for c in found for h, _ in c.stats.hits_per_k.values()) > 0


@pytest.mark.parametrize("mode", ["ar", "ssd"])
def test_stop_strings_and_logprobs_equal_eager_rounds(engine: MakeEngine, captured: MakeCaptured, mode: str) -> None:
    """A stop string is seen two rounds late; the tokens after it are dropped, and count nowhere."""
    whole = engine(mode, max_batch=3).decode(PROMPTS, GREEDY)
    params = [replace(own, stop=(c.text[3:5],)) for own, c in zip(GREEDY, whole, strict=True) if len(c.text) > 8]
    prompts = [prompt for prompt, c in zip(PROMPTS, whole, strict=True) if len(c.text) > 8]
    assert len(prompts) > 3
    options = FIXED if mode == "ssd" else {}
    stopped = engine(mode, max_batch=3, **options).decode(prompts, params)
    assert {c.finish_reason for c in stopped} == {"stop"}
    with_logprobs = [replace(own, logprobs=2, temperature=0.5, seed=3) for own in GREEDY]
    listed = engine(mode, max_batch=3, **options).decode(PROMPTS, with_logprobs)
    for seed in range(3):
        one, _ = captured(mode, seed, max_batch=3, **options)
        assert figures(one.decode(prompts, params)) == figures(stopped)
        assert [c.logprobs for c in one.decode(PROMPTS, with_logprobs)] == [c.logprobs for c in listed]


def test_a_program_is_recorded_once_for_each_batch_size(captured: MakeCaptured) -> None:
    """Before the first request: for 1, 2, 4 and the largest batch. Again once a request samples."""
    one, device = captured("ssd", 0, max_batch=6, **FIXED)
    graphs = one.core.executor._graphs  # type: ignore[attr-defined]
    programs = {("draft", "look up"), ("draft", "speculate"), ("target", "verify")}
    assert {(lane, name, n) for lane, name, n, _ in graphs} == {(*each, n) for each in programs for n in (1, 2, 4, 6)}
    assert device.captures == len(graphs) == 3 * 4
    one.decode(PROMPTS, GREEDY)
    assert device.captures == 3 * 4
    one.decode(PROMPTS, SAMPLED)
    one.decode(PROMPTS, SAMPLED)
    assert 3 * 4 < device.captures == len(graphs) <= 2 * 3 * 4


def test_the_time_and_memory_of_recording_are_reported(captured: MakeCaptured) -> None:
    fractions: list[float] = []
    one, device = captured("ssd", 0, max_batch=6, progress=fractions.append, **FIXED)
    found = one.footprint
    assert (found.rounds, found.recorded, list(found.batch_sizes)) == ("graphs", device.captures, [1, 2, 4, 6])
    assert found.recording_bytes == 1_000 * device.captures and found.recording_seconds > 0
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert fractions[-5:-1] == pytest.approx([0.8, 0.85, 0.9, 0.95])


def test_the_timeline_has_prefills_and_rounds_in_the_order_of_each_lane(captured: MakeCaptured) -> None:
    """Spans that the host never waited for are included, with the device's times."""
    one, _ = captured("ssd", 0, max_batch=2, draft_device="cpu", **FIXED)
    one.trace.record()
    one.decode(PROMPTS[:2], GREEDY[:2])
    spans = [event for event in one.trace.timeline()["traceEvents"] if event["ph"] == "X"]
    names = {lane: [e["name"] for e in spans if e["tid"] == lane] for lane in (0, 1)}
    assert names[0].count("prefill") == names[1].count("prefill") == 2
    assert set(names[0]) == {"send", "prefill", "verify"}
    assert set(names[1]) == {"send", "prefill", "look up", "speculate"}
    for lane in (0, 1):
        ends = [(e["ts"], e["ts"] + e["dur"]) for e in spans if e["tid"] == lane]
        assert all(before[1] <= after[0] for before, after in pairwise(ends))


def test_the_host_is_two_rounds_ahead(captured: MakeCaptured) -> None:
    """It is never further ahead: after the third round is launched, the first is read."""
    one, _ = captured("ssd", 0, max_batch=1, **FIXED)
    depths = []
    take = one.core._deliver

    def watched(oldest: Any) -> Any:
        depths.append(1 + len(one.core.in_flight))
        return take(oldest)

    one.core._deliver = watched  # type: ignore[method-assign]
    one.decode(PROMPTS[0], GREEDY[0])
    assert max(depths) == 3  # with the one just begun


@pytest.mark.parametrize("where", ["store", "look_up", "branch"])
def test_graphs_of_a_failed_draft_are_not_used_again(
    engine: MakeEngine, captured: MakeCaptured, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A graph refers to the draft's tables; the rounds that continue without the draft have others."""
    expected = [c.token_ids for c in engine("ar", max_batch=3).decode(PROMPTS, SAMPLED)]
    for seed in range(3):
        one, _ = captured("ssd", seed, max_batch=3, **FIXED)
        before = set(one.core.executor._graphs)  # type: ignore[attr-defined]
        part = one.core.loop.drafter if where == "store" else one.core.loop.cache  # type: ignore[union-attr]
        monkeypatch.setattr(part, where, lambda *arguments: 1 // 0)
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
            found = one.decode(PROMPTS, SAMPLED)  # sampling programs are recorded again
        assert [c.token_ids for c in found] == expected
        assert all(c.degraded for c in found)
        assert before and not {name for _, name, *_ in one.core.executor._graphs} - {"verify"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_losing_the_drafts_device_in_flight_loses_no_token(
    engine: MakeEngine, captured: MakeCaptured, monkeypatch: pytest.MonkeyPatch, mode: str, after: int
) -> None:
    """The rounds in flight used that device too. From then on every request of the host to it raises."""
    expected = [c.token_ids for c in engine("ar", max_batch=3).decode(PROMPTS, GREEDY)]
    for seed in range(3):
        one, device = captured(mode, seed, max_batch=3, draft_device="cpu", **FIXED)
        take, taken = one.core._deliver, []

        def lose(under_way: Any, take: Any = take, taken: list[Any] = taken, device: FakeDevice = device) -> Any:
            taken.append(under_way)
            if len(taken) == after:
                device.lost.add("draft")
            return take(under_way)

        monkeypatch.setattr(one.core, "_deliver", lose)
        with pytest.warns(RuntimeWarning, match="the device of the draft is lost"):
            found = one.decode(PROMPTS, GREEDY)
        assert [c.token_ids for c in found] == expected
        assert any(c.degraded for c in found)
        assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity
        one.close()


def test_a_value_read_while_recording_is_refused() -> None:
    device, table = FakeDevice(0), torch.zeros(2)
    for read in (lambda: bool(table.any()), lambda: table.tolist(), lambda: table[0].item(), lambda: int(table[0])):
        with pytest.raises(HostRead):
            device.capture(device.stream("target"), read)


def test_a_condition_is_evaluated_when_the_program_runs() -> None:
    device = FakeDevice(0)
    executor, flag, count = CapturedExecutor(Trace(), device, 1), torch.zeros(1), torch.zeros(1)
    with torch.inference_mode():
        for value, expected in ((0, 0), (0, 0), (1, 1), (1, 2), (0, 2), (1, 3)):
            flag.fill_(value)
            executor.run("draft", "program", lambda: executor.when(flag != 0, lambda: count.add_(1)), 1).wait()
            assert count.item() == expected
    assert device.captures == 1


# Planted mistakes that some order must reveal --------------------------------------------------------------------------------


def read_live_state(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft has no copy of the sequences' state: it branches from the target's live state."""
    tables = one.core.loop.drafter.tables  # type: ignore[union-attr]
    live = replace(tables.branches, length=one._assembly.state.length, last_token=one._assembly.state.last_token)
    monkeypatch.setattr(tables, "branches", live)


def change_tables_under_the_draft(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is admitted, and a finished one gives its pages back, while branches for the old ones are in flight."""
    monkeypatch.setattr(one.core.executor, "_join", lambda: None)


def draw_into_the_half_in_use(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches' distributions overwrite the half that the verification reads."""
    step = ModelDrafter.step

    def drawn(self: ModelDrafter, *arguments: Any, next_half: bool = False, **more: Any) -> None:
        step(self, *arguments, next_half=False, **more)

    monkeypatch.setattr(ModelDrafter, "step", drawn)


def on_another_lane(name: str, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CapturedExecutor.run
    monkeypatch.setattr(
        CapturedExecutor,
        "run",
        lambda self, own, program, *more, **named: run(self, lane if program == name else own, program, *more, **named),
    )


def look_up_before_the_branches_are_there(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in the target's lane, so it waits for the verification but not for the draft."""
    on_another_lane("look up", "target", monkeypatch)


def without_waiting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = CapturedExecutor.run

    def hurry(self: Any, lane: str, program: str, work: Any, n: int, key: object = None, after: Any = ()) -> Any:
        return run(self, lane, program, work, n, key, () if program == name else after)

    monkeypatch.setattr(CapturedExecutor, "run", hurry)


def look_up_before_the_outcome_is_there(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting(monkeypatch, "look up")


def verify_before_the_speculation_is_there(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting(monkeypatch, "verify")


def let_done_slots_write(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A released slot keeps its page table, so its rows go on writing to those pages."""
    monkeypatch.setattr(SequenceState, "retire", lambda self, slot: self.done[slot].fill_(1))


def read_reports_before_they_are_there(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy to the host does not wait for the verification."""
    read = CapturedExecutor.read
    monkeypatch.setattr(CapturedExecutor, "read", lambda self, lane, table: read(self, "draft", table))


def without_waiting_for_what_is_sent(one: Engine, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    link = one.core.loop.link  # type: ignore[union-attr]
    send = getattr(link, method)

    def hurry(n: int, run: Any) -> Any:
        send(n, run)
        return run

    monkeypatch.setattr(link, method, hurry)


def verify_before_the_speculation_has_arrived(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification waits for the look-up, but not for the tables that are sent after it."""
    without_waiting_for_what_is_sent(one, monkeypatch, "send_speculation")


def look_up_before_the_outcome_has_arrived(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting_for_what_is_sent(one, monkeypatch, "send_outcome")


def never_tell_the_draft_who_ended(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows go on writing to pages that now belong to another sequence."""
    monkeypatch.setattr(one.core.loop.link, "retire", lambda slot: None)  # type: ignore[union-attr]


def never_tell_the_draft_of_prompts(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one.core.loop.link, "enter", lambda slot, output: None)  # type: ignore[union-attr]


def send_the_distributions_of_another_branch(one: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends the half that the branches are being drawn into."""
    leaves, speculation = one.core.loop.link.speculation_leaves, one.core.loop.link.draft_side.speculation  # type: ignore[union-attr]

    def wrong(n: int) -> Any:
        speculation.parity.copy_(1 - speculation.parity)
        leaving = leaves(n)
        speculation.parity.copy_(1 - speculation.parity)
        return leaving

    monkeypatch.setattr(one.core.loop.link, "speculation_leaves", wrong)  # type: ignore[union-attr]


# Memory for six pages: the fourth request waits until the first two release theirs, while the third runs on.
TIGHT = random_prompts((3, 4, 5, 20, 21, 6))
TIGHT_PARAMS = [SamplingParams(temperature=1.0, max_new_tokens=n, ignore_eos=True, seed=n) for n in (9, 8, 39, 25, 24, 30)]


ON_ONE_DEVICE = [
    read_live_state,
    change_tables_under_the_draft,
    draw_into_the_half_in_use,
    look_up_before_the_branches_are_there,
    look_up_before_the_outcome_is_there,
    verify_before_the_speculation_is_there,
    let_done_slots_write,
    read_reports_before_they_are_there,
]
ON_TWO = [
    change_tables_under_the_draft,
    look_up_before_the_branches_are_there,
    verify_before_the_speculation_has_arrived,
    look_up_before_the_outcome_has_arrived,
    never_tell_the_draft_who_ended,
    never_tell_the_draft_of_prompts,
    send_the_distributions_of_another_branch,
]


@pytest.mark.parametrize(
    "apart,mistake", [(False, mistake) for mistake in ON_ONE_DEVICE] + [(True, mistake) for mistake in ON_TWO]
)
def test_a_planted_mistake_is_revealed(
    engine: MakeEngine, captured: MakeCaptured, monkeypatch: pytest.MonkeyPatch, apart: bool, mistake: Callable[..., None]
) -> None:
    options = FIXED | {"max_batch": 3, "lookahead": 3, "max_context": 64, "draft_device": "cpu" if apart else None}
    expected = figures(engine("ssd", **options).decode(TIGHT, TIGHT_PARAMS))

    def found_in(seed: int) -> bool:
        one, _ = captured("ssd", seed, **options)
        one.core.scheduler.pages.allocate(one.core.scheduler.pages.available - 6)
        with monkeypatch.context() as patch:
            mistake(one, patch)
            return figures(one.decode(TIGHT, TIGHT_PARAMS)) != expected

    for seed in range(12):
        try:
            if found_in(seed):
                return
        except (AssertionError, RuntimeError, IndexError):  # inconsistent tables; not the failure that this test is about
            continue
    raise AssertionError("no order told it apart")


@pytest.mark.parametrize("draft_device", [None, "cpu"])
def test_tight_memory_changes_no_token(engine: MakeEngine, captured: MakeCaptured, draft_device: str | None) -> None:
    options = FIXED | {"max_batch": 3, "lookahead": 3, "max_context": 64, "draft_device": draft_device}
    expected = figures(engine("ssd", **options).decode(TIGHT, TIGHT_PARAMS))
    for seed in range(4):
        one, _ = captured("ssd", seed, **options)
        one.core.scheduler.pages.allocate(one.core.scheduler.pages.available - 6)
        assert figures(one.decode(TIGHT, TIGHT_PARAMS)) == expected
