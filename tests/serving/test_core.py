"""Requests come and go at any time, from any thread, and no request's tokens change: the core steps for all of them."""

from __future__ import annotations

import random
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.cases import FIXED, MakeCaptured, MakeEngine, random_prompt, random_prompts
from ssd import Completion, Engine, SamplingParams
from ssd.decoding.round import DraftFailed
from ssd.errors import SsdError
from ssd.requests import Stream
from ssd.serving import storing

PROMPTS = random_prompts((4, 9, 1, 20, 7, 2))
LONG = SamplingParams(max_new_tokens=40, ignore_eos=True)

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "ar": ("ar", {}),
    "sd": ("sd", {}),
    "ssd, neural": ("ssd", {"fallback": "neural"}),
    "ssd, ngram": ("ssd", {"fallback": "ngram"}),
    "ssd, auto": ("ssd", {"fallback": "auto"}),
}


def is_idle_and_whole(engine: Engine) -> bool:
    scheduler = engine.core.scheduler
    scheduler.check_integrity()
    return not scheduler.busy and scheduler.pages.available == scheduler.pages.capacity


def rest_of(stream: Stream) -> str:
    return "".join(stream)


# Streams beside each other ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_two_streams_read_in_turn_by_one_thread_both_advance(engine: MakeEngine, mode: str) -> None:
    one = engine(mode, max_batch=2)
    alone = [one.decode(prompt, LONG).text for prompt in PROMPTS[:2]]
    streams = [one.stream(prompt, LONG) for prompt in PROMPTS[:2]]
    texts = ["", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        assert len(one.core.scheduler.admitted) in (0, 1, 2)
    rests = [rest_of(stream) for stream in streams]
    assert all(whole.startswith(text) and whole.endswith(rest) for whole, text, rest in zip(alone, texts, rests, strict=True))
    assert [stream.completion.text for stream in streams if stream.completion is not None] == alone
    assert is_idle_and_whole(one)


def test_a_call_beside_a_stream_changes_neither(engine: MakeEngine) -> None:
    one = engine("ssd")
    alone = [one.decode(prompt, LONG).token_ids for prompt in PROMPTS[:3]]
    stream = one.stream(PROMPTS[0], LONG)
    next(iter(stream))
    assert [completion.token_ids for completion in one.decode(PROMPTS[1:3], LONG)] == alone[1:]
    rest_of(stream)
    assert stream.completion is not None and stream.completion.token_ids == alone[0]


def test_a_stream_that_nobody_reads_is_decoded_while_others_wait(engine: MakeEngine) -> None:
    one = engine("sd", max_batch=2)
    unread = one.stream(PROMPTS[0], replace(LONG, max_new_tokens=5))
    one.decode(PROMPTS[1], LONG)
    assert not one.core.scheduler.busy
    assert rest_of(unread) == one.decode(PROMPTS[0], replace(LONG, max_new_tokens=5)).text


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_a_closed_stream_ends_its_own_request_alone(engine: MakeEngine, mode: str) -> None:
    one = engine(mode, max_batch=3)
    alone = [one.decode(prompt, LONG).token_ids for prompt in PROMPTS[:3]]
    streams = [one.stream(prompt, LONG) for prompt in PROMPTS[:3]]
    for stream in streams:
        next(iter(stream))
    streams[1].close()
    assert sorted(one.core.scheduler.running) == [0, 2]
    for stream, expected in ((streams[0], alone[0]), (streams[2], alone[2])):
        rest_of(stream)
        assert stream.completion is not None and stream.completion.token_ids == expected
    assert streams[1].completion is None
    assert is_idle_and_whole(one)


def test_a_request_that_is_closed_while_it_waits_takes_nothing(engine: MakeEngine) -> None:
    one = engine("sd", max_batch=1)
    running, waiting = (one.stream(prompt, LONG) for prompt in PROMPTS[:2])
    next(iter(running))
    waiting.close()
    rest_of(running)
    assert is_idle_and_whole(one)


# Errors and interrupts --------------------------------------------------------------------------------------------------------


def test_an_exception_in_one_client_does_not_affect_the_others(engine: MakeEngine) -> None:
    one = engine("ssd")
    alone = one.decode(PROMPTS[0], LONG).token_ids
    other = one.stream(PROMPTS[0], LONG)
    next(iter(other))
    with pytest.raises(ZeroDivisionError), one.stream(PROMPTS[1], LONG) as stream:
        next(1 / 0 for _ in stream)
    rest_of(other)
    assert other.completion is not None and other.completion.token_ids == alone
    assert is_idle_and_whole(one)


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
@pytest.mark.usefixtures("eager_rounds")
def test_ctrl_c_in_one_client_does_not_affect_the_others(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The signal comes in the middle of a verification that serves both."""
    one = engine(mode)
    alone = one.decode(PROMPTS[0], LONG).token_ids
    other = one.stream(PROMPTS[0], LONG)
    next(iter(other))
    verify, calls = one.core.loop.verifier.verify, [0]

    def interrupted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            signal.raise_signal(signal.SIGINT)
        return verify(*arguments)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores the signal
    monkeypatch.setattr(one.core.loop.verifier, "verify", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            one.decode(PROMPTS[1:3], LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(one.core.scheduler.admitted) == 1
    rest_of(other)
    assert other.completion is not None and other.completion.token_ids == alone
    assert is_idle_and_whole(one)


@pytest.mark.usefixtures("eager_rounds")
def test_an_error_of_the_target_reaches_every_client_that_it_ran_for(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine("ar", max_batch=2)
    streams = [one.stream(prompt, LONG) for prompt in PROMPTS[:3]]
    for stream in streams[:2]:
        next(iter(stream))

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no target")

    with monkeypatch.context() as patch:
        patch.setattr(one.core.loop.verifier, "verify", fail)
        for stream in streams[:2]:
            with pytest.raises(RuntimeError, match="no target"):
                rest_of(stream)
    assert rest_of(streams[2])  # it had no slot yet, and has one now
    assert is_idle_and_whole(one)


def failing_once(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        raise error

    return fail


def test_an_aborted_slot_that_cannot_be_switched_off_closes_the_engine(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine("ar", max_batch=1)
    stream = one.stream(PROMPTS[0], LONG)
    next(iter(stream))
    monkeypatch.setattr(one.core.loop, "retire", failing_once(RuntimeError("no device")))
    stream.close()
    with pytest.raises(SsdError, match="no device.*make another engine"):
        one.decode(PROMPTS[1], LONG)
    assert is_idle_and_whole(one)


def test_a_warning_that_is_an_error_leaves_the_failover_whole(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine("ssd")
    expected = engine("ar").decode(PROMPTS[0], LONG).token_ids
    other = one.stream(PROMPTS[0], LONG)
    next(iter(other))
    monkeypatch.setattr(one.core.loop, "round", failing_once(DraftFailed()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="the draft failed"):
            one.decode(PROMPTS[1], LONG)
        rest_of(other)
    assert one.mode == "ar"
    assert other.completion is not None and other.completion.token_ids == expected and other.completion.degraded
    assert is_idle_and_whole(one)


def test_a_stream_that_is_closed_while_another_thread_reads_it_ends_as_aborted(engine: MakeEngine) -> None:
    one = engine("ar")
    stream, begun = one.stream(PROMPTS[0], replace(LONG, max_new_tokens=400)), threading.Event()

    def read() -> None:
        for _ in stream:
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait(timeout=60)
    stream.close()
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert stream.completion is None or stream.completion.finish_reason == "aborted"
    assert is_idle_and_whole(one)


def test_ctrl_c_while_a_stream_is_read_ends_its_request(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine("ar", max_batch=1)
    stream = one.stream(PROMPTS[0], LONG)
    next(iter(stream))
    with monkeypatch.context() as patch:
        patch.setattr(one.core, "wait", failing_once(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            rest_of(stream)
    assert is_idle_and_whole(one)


@pytest.mark.parametrize("mode", ["ar", "ssd"])
def test_interrupts_at_any_place_leave_nothing_behind(engine: MakeEngine, mode: str) -> None:
    """A timer interrupts calls of every kind for a while; whatever it hits, the next client is served."""
    one, params = engine(mode, max_batch=1, fallback="neural"), replace(LONG, max_new_tokens=6)
    expected = one.decode(PROMPTS[0], params).token_ids
    before = signal.signal(signal.SIGALRM, signal.default_int_handler), signal.signal(signal.SIGINT, signal.default_int_handler)
    dice, hits = random.Random(0), 0
    signal.signal(signal.SIGALRM, lambda *arguments: signal.raise_signal(signal.SIGINT))
    try:
        while hits < 30:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.01))
                with one.stream(PROMPTS[1], params) as stream:
                    next(iter(stream))
                one.decode(PROMPTS[2], params)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert one.decode(PROMPTS[0], params).token_ids == expected
    assert is_idle_and_whole(one)


def test_a_closed_engine_steps_no_more_and_warns_of_nothing(engine: MakeEngine) -> None:
    one = engine("ssd")
    stream = one.stream(PROMPTS[0], LONG)
    next(iter(stream))
    one.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SsdError, match="closed"):
            one.core.step()
        with pytest.raises(SsdError, match="closed"):
            rest_of(stream)


# Threads ----------------------------------------------------------------------------------------------------------------------


THREADS, REQUESTS = 10, 20


@pytest.mark.parametrize("mode", MODES)
def test_ten_threads_get_the_tokens_that_each_request_gets_alone(engine: MakeEngine, mode: str) -> None:
    """Random lengths, temperatures and stop strings; a third of the streams are closed early.

    Where an n-gram may be proposed, only greedy requests are comparable.
    """
    name, options = MODES[mode]
    one, alone = engine(name, max_batch=4, **options), engine(name, max_batch=1, **options)
    greedy = "fallback" in options and options["fallback"] != "neural"
    failures: list[str] = []
    jobs = [random_requests(thread, greedy) for thread in range(THREADS)]
    expected = [[alone.decode(prompt, params) for prompt, params, _ in requests] for requests in jobs]

    def work(thread: int) -> None:
        for (prompt, params, read), whole in zip(jobs[thread], expected[thread], strict=True):
            if problem := compare(one, prompt, params, read, whole):
                failures.append(f"thread {thread}: {problem}")

    run_all([threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)])
    assert failures == []
    assert is_idle_and_whole(one)


def random_requests(seed: int, greedy: bool) -> list[tuple[list[int], SamplingParams, int | None]]:
    """(prompt, parameters, pieces to read before closing; None: all)."""
    dice = random.Random(seed)
    requests = []
    for i in range(REQUESTS):
        params = SamplingParams(
            temperature=0.0 if greedy else dice.choice((0.0, 0.7, 1.0)),
            max_new_tokens=dice.randint(1, 40),
            seed=1000 * seed + i,
            stop=dice.choice(((), ("e",), ("th", "Q"))),
        )
        requests.append(
            (random_prompt(dice.randint(1, 60), 1000 * seed + i), params, dice.choice((None, None, dice.randint(0, 5))))
        )
    return requests


def compare(engine: Engine, prompt: list[int], params: SamplingParams, read: int | None, whole: Completion) -> str | None:
    """How a request on the shared engine differs from the one decoded alone."""
    if read is None and len(prompt) % 2:
        found = engine.decode(prompt, params)
        return None if (found.token_ids, found.text) == (whole.token_ids, whole.text) else f"{found.text!r}, not {whole.text!r}"
    with engine.stream(prompt, params) as stream:
        text = ""
        for count, piece in enumerate(stream):
            if count == read:
                break
            text += piece
    if read is None:
        return None if text == whole.text else f"{text!r}, not {whole.text!r}"
    return None if whole.text.startswith(text) else f"{text!r} is no beginning of {whole.text!r}"


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads)


# Prompts in chunks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chunks_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "PREFILL_CHUNK", 16)


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_each_running_stream_gets_a_round_between_two_chunks(
    captured: MakeCaptured, engine: MakeEngine, chunks_of_16: None, mode: str
) -> None:
    options = FIXED if mode == "ssd" else {}
    prompts = [*PROMPTS[:3], random_prompt(100)]
    expected = [engine("ar").decode(prompt, LONG).token_ids for prompt in prompts]
    for seed in range(2):
        one, _ = captured(mode, seed, max_batch=4, **options)
        events = watch(one)
        streams = [one.stream(prompt, LONG) for prompt in prompts[:3]]
        for stream in streams:
            next(iter(stream))
        events.clear()
        streams.append(one.stream(prompts[3], LONG))
        for stream in streams:
            rest_of(stream)
        assert [event for event in events if event != "round"] == ["store"] * 6 + ["enter"]
        first = events.index("store")
        assert events[first : first + 13] == ["store", "round"] * 6 + ["enter"]
        assert [stream.completion.token_ids for stream in streams if stream.completion is not None] == expected
        assert is_idle_and_whole(one)


def watch(engine: Engine) -> list[str]:
    """The loop's calls from now on, in order."""
    events: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            events.append(name)
            return call(*arguments)

        return noted

    for name in ("store", "enter", "round"):
        setattr(engine.core.loop, name, noting(name, getattr(engine.core.loop, name)))
    return events


def test_short_prompts_share_a_step(engine: MakeEngine, chunks_of_16: None) -> None:
    one = engine("ar", max_batch=4)
    events = watch(one)
    one.decode([random_prompt(n) for n in (5, 6, 7, 20)], LONG)
    assert events[:7] == ["enter", "enter", "round", "enter", "round", "store", "round"]


def test_a_request_closed_while_its_prompt_is_stored_releases_everything(captured: MakeCaptured, chunks_of_16: None) -> None:
    one, _ = captured("ssd", 0, max_batch=2, **FIXED)
    expected = one.decode(PROMPTS[0], LONG).token_ids
    running, closed = one.stream(PROMPTS[0], LONG), one.stream(random_prompt(100), LONG)
    for _ in range(3):
        one.core.step()
    assert 0 < one.core.scheduler.admitted[1].stored < 100
    closed.close()
    rest_of(running)
    assert running.completion is not None and running.completion.token_ids == expected
    assert is_idle_and_whole(one)


def test_a_step_returns_the_requests_that_grew(engine: MakeEngine) -> None:
    one = engine("ar", max_batch=2)
    streams = [one.stream(prompt, replace(LONG, max_new_tokens=3)) for prompt in PROMPTS[:2]]
    grown = [len(one.core.step()) for _ in range(3)]
    assert grown[0] == 4  # both prompts' first tokens, and a round of both
    assert not one.core.scheduler.busy
    assert [len(stream.completion.token_ids) for stream in streams if rest_of(stream) and stream.completion] == [3, 3]
