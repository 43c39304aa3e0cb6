"""Coroutines read an engine's chunks: each gets its own text, may leave at any time, and cannot hold up the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.cases import Gate, eventually, is_idle_and_whole, read
from server.conftest import MakeEngine
from ssd import AsyncEngine, SamplingParams
from ssd.errors import SsdError
from ssd.server.async_engine import Draining, EngineFailed, QueueFull
from ssd.server.reader import DeadlinePassed, SlowReader

PROMPTS = ["one", "the other", "and a third one", "four"]
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)
LONG = SamplingParams(max_new_tokens=300, ignore_eos=True)


async def until(true: Callable[[], bool]) -> None:
    """Let the other coroutines and the engine's thread go on until this is true."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)


def run(test: Awaitable[Any]) -> Any:
    async def within_a_minute() -> Any:
        async with asyncio.timeout(60):
            return await test

    return asyncio.run(within_a_minute())


def test_chunks_join_to_the_completion_that_the_engine_alone_gives(engine: MakeEngine) -> None:
    one = engine()
    alone = one.decode(PROMPTS, PARAMS)

    async def all_together() -> list[Any]:
        served = AsyncEngine(one)
        answers = await asyncio.gather(*(read(served.generate(prompt, PARAMS)) for prompt in PROMPTS))
        await served.close()
        return answers

    for (text, ids, completion), expected in zip(run(all_together()), alone, strict=True):
        assert (text, ids) == (completion.text, completion.token_ids) == (expected.text, expected.token_ids)
        assert completion.finish_reason == "length"
    assert is_idle_and_whole(one)


def test_more_requests_than_slots_are_all_answered(engine: MakeEngine) -> None:
    one = engine(max_batch=2)
    expected = [completion.token_ids for completion in one.decode(PROMPTS * 4, PARAMS)]

    async def all_together() -> list[Any]:
        async with AsyncEngine(one) as served:
            return await asyncio.gather(*(read(served.generate(prompt, PARAMS)) for prompt in PROMPTS * 4))

    assert [ids for _, ids, _ in run(all_together())] == expected


def test_logprobs_come_with_their_tokens(engine: MakeEngine) -> None:
    one = engine()
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, logprobs=2)

    async def logprobs() -> tuple[list[Any], list[Any]]:
        async with AsyncEngine(one) as served:
            streamed: list[Any] = []
            async for chunk in served.generate(PROMPTS[0], params):
                assert chunk.logprobs is not None and len(chunk.logprobs) == len(chunk.token_ids)
                assert all(token in row for token, row in zip(chunk.token_ids, chunk.logprobs, strict=True))
                streamed += chunk.logprobs
            assert chunk.completion is not None and chunk.completion.logprobs is not None
            return streamed, chunk.completion.logprobs

    streamed, whole = run(logprobs())
    assert len(streamed) == 20
    assert streamed == whole


def test_a_stop_string_is_never_shown(engine: MakeEngine) -> None:
    one = engine()
    text = one.decode(PROMPTS[1], PARAMS).text
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, stop=(text[6:9],))

    async def streamed() -> tuple[str, list[int], Any]:
        async with AsyncEngine(one) as served:
            return await read(served.generate(PROMPTS[1], params))

    shown, _, completion = run(streamed())
    assert completion.finish_reason == "stop"
    assert shown == completion.text == text[: text.index(text[6:9])]


def test_a_generator_that_is_closed_frees_its_slot_within_two_rounds(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(max_batch=2)
    expected = one.decode(PROMPTS[1], PARAMS).token_ids
    gate = Gate(one, monkeypatch)

    async def close_one() -> list[int]:
        async with AsyncEngine(one) as served:
            closed = served.generate(PROMPTS[0], LONG)
            task = asyncio.create_task(read(served.generate(PROMPTS[1], PARAMS)))
            gate.let(3)
            await anext(closed)
            await until(lambda: gate.stepped(lambda: served.running == 2))
            await closed.aclose()
            await until(lambda: gate.stepped(lambda: served.running == 1))
            gate.open()
            return (await task)[1]

    assert run(close_one()) == expected
    assert is_idle_and_whole(one)


def test_a_cancelled_task_frees_its_slot(engine: MakeEngine) -> None:
    one = engine()

    async def cancel() -> None:
        async with AsyncEngine(one) as served:
            task = asyncio.create_task(read(served.generate(PROMPTS[0], LONG)))
            await until(lambda: served.running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: served.running == 0 and served.waiting == 0)

    run(cancel())
    assert is_idle_and_whole(one)


def test_a_full_queue_refuses_and_says_when_to_come_back(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_batch=1)
    gate = Gate(one, monkeypatch)

    async def fill() -> None:
        async with AsyncEngine(one, max_waiting=2) as served:
            tasks = [asyncio.create_task(read(served.generate(prompt, PARAMS))) for prompt in PROMPTS[:3]]
            await until(lambda: served.waiting == 3)
            with pytest.raises(
                QueueFull, match=r"^3 requests are running or waiting, and the limit is 3; try again in \d+ s\.$"
            ) as full:
                await anext(served.generate(PROMPTS[3], PARAMS))
            assert 1 <= full.value.retry_after <= 60
            gate.open()
            await asyncio.gather(*tasks)
            assert (await read(served.generate(PROMPTS[3], PARAMS)))[2].finish_reason == "length"

    run(fill())


def test_a_batch_that_can_never_fit_is_refused_for_good(engine: MakeEngine) -> None:
    one = engine(max_batch=1)

    async def too_many() -> None:
        async with AsyncEngine(one, max_waiting=2) as served:
            with pytest.raises(SsdError, match=r"^there are 4 requests in one, and at most 3 fit in the queue; split them\.$"):
                await served.start(PROMPTS, [PARAMS])
            assert served.waiting == 0

    run(too_many())


def test_a_refused_prompt_takes_no_place_in_the_queue(engine: MakeEngine) -> None:
    one = engine(max_batch=1)

    async def refuse() -> None:
        async with AsyncEngine(one, max_waiting=1) as served:
            for _ in range(5):
                with pytest.raises(SsdError, match="empty"):
                    await anext(served.generate("", PARAMS, raw=True))
            assert served.waiting == 0
            await read(served.generate(PROMPTS[0], PARAMS))

    run(refuse())


def test_a_request_ends_at_its_deadline(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    gate = Gate(one, monkeypatch)

    async def wait() -> None:
        async with AsyncEngine(one) as served:
            with pytest.raises(DeadlinePassed, match=r"^the request was not finished after 0\.05 s; .*\.$"):
                await read(served.generate(PROMPTS[0], LONG, deadline=0.05))
            gate.open()
            await until(lambda: served.waiting == 0 and served.running == 0)
            _, _, completion = await read(served.generate(PROMPTS[0], PARAMS, deadline=60))
            assert completion.finish_reason == "length"

    run(wait())
    assert is_idle_and_whole(one)


def test_a_slow_reader_ends_alone_and_says_why(engine: MakeEngine) -> None:
    one = engine(max_batch=2)
    expected = one.decode(PROMPTS[1], LONG).token_ids

    async def read_one_slowly() -> list[int]:
        async with AsyncEngine(one, max_unread=20) as served:
            (slow,) = await served.start([PROMPTS[0]], [LONG])
            await until(lambda: slow.request.finished)  # nobody reads it
            assert 20 < len(slow.request.token_ids) < 40
            with pytest.raises(SlowReader, match=r"^\d+ tokens of the stream were left unread, and the limit is 20; .*\.$"):
                await anext(slow)
            with pytest.raises(StopAsyncIteration):
                await anext(slow)
            (whole,) = await served.start([PROMPTS[1]], [LONG])
            return (await whole.completion()).token_ids  # a reader that wants everything at once is not slow

    assert run(read_one_slowly()) == expected
    assert is_idle_and_whole(one)


def test_a_reader_whose_event_loop_has_ended_frees_its_slot(engine: MakeEngine) -> None:
    one = engine()
    served = AsyncEngine(one)

    async def leave_unread() -> None:
        await served.start([PROMPTS[0]], [LONG])

    run(leave_unread())
    eventually(lambda: served.running == served.waiting == 0)
    run(served.close())
    assert is_idle_and_whole(one)


def test_an_error_of_the_target_reaches_the_readers_it_ended_and_the_engine_goes_on(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine()
    expected = one.decode(PROMPTS[0], PARAMS).token_ids
    forward, broken = one.target_model.forward, [True]

    def fail(*arguments: Any) -> Any:
        if broken[0]:
            raise ZeroDivisionError("out of luck")
        return forward(*arguments)

    monkeypatch.setattr(one.target_model, "forward", fail)

    async def two() -> list[int]:
        async with AsyncEngine(one) as served:
            errors = await asyncio.gather(
                *(read(served.generate(prompt, PARAMS)) for prompt in PROMPTS[:2]), return_exceptions=True
            )
            assert [type(error) for error in errors] == [ZeroDivisionError, ZeroDivisionError]
            broken[0] = False
            return (await read(served.generate(PROMPTS[0], PARAMS)))[1]

    assert run(two()) == expected


def test_an_error_of_the_core_reaches_every_reader_and_later_requests(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(max_batch=1)

    def fail() -> Any:
        raise RuntimeError("out of luck")

    async def all_fail() -> None:
        async with AsyncEngine(one) as served:
            monkeypatch.setattr(one.core, "step", fail)
            answers = await asyncio.gather(*(read(served.generate(prompt, LONG)) for prompt in PROMPTS), return_exceptions=True)
            assert [type(answer) for answer in answers] == [EngineFailed] * 4
            assert served.state == "failed"
            with pytest.raises(
                EngineFailed, match=r"^the engine has failed \(RuntimeError\) and runs nothing any more; restart it\.$"
            ):
                await anext(served.generate(PROMPTS[0], PARAMS))

    run(all_fail())


def test_a_callback_that_fails_keeps_no_reader_waiting(engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    one = engine()

    def fail(request: Any) -> None:
        raise ZeroDivisionError("out of luck")

    async def two() -> list[str]:
        async with AsyncEngine(one, on_end=fail) as served:
            return [(await read(served.generate(prompt, PARAMS)))[2].finish_reason for prompt in PROMPTS[:2]]

    assert run(two()) == ["length", "length"]
    assert [record.getMessage() for record in caplog.records] == ["on_end has failed (ZeroDivisionError: out of luck)."] * 2


def test_draining_finishes_the_accepted_and_refuses_the_rest(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_batch=2)
    gate = Gate(one, monkeypatch)

    async def drain() -> list[Any]:
        async with AsyncEngine(one) as served:
            tasks = [asyncio.create_task(read(served.generate(prompt, PARAMS))) for prompt in PROMPTS]
            await until(lambda: served.waiting == 4)
            draining = asyncio.create_task(served.drain())
            await until(lambda: served.state == "draining")
            with pytest.raises(Draining):
                await anext(served.generate(PROMPTS[0], PARAMS))
            assert not draining.done()
            gate.open()
            await draining
            assert served.running == served.waiting == 0
            return await asyncio.gather(*tasks)

    assert [completion.finish_reason for _, _, completion in run(drain())] == ["length"] * 4


def test_closing_ends_what_runs(engine: MakeEngine) -> None:
    one = engine()

    async def close() -> None:
        served = AsyncEngine(one)
        (reader,) = await served.start([PROMPTS[0]], [LONG])
        await anext(reader)
        await served.close()
        with pytest.raises(EngineFailed, match=r"^this engine is closed; make another one\.$"):
            await read(reader)

    run(close())


def test_the_engine_itself_can_be_used_beside_the_coroutines(engine: MakeEngine) -> None:
    one = engine()
    expected = one.decode(PROMPTS[:2], PARAMS)

    async def both() -> tuple[Any, Any]:
        async with AsyncEngine(one) as served:
            streamed, whole = await asyncio.gather(
                read(served.generate(PROMPTS[0], PARAMS)), asyncio.to_thread(one.decode, PROMPTS[1], PARAMS)
            )
            return streamed[2], whole

    assert [completion.token_ids for completion in run(both())] == [completion.token_ids for completion in expected]


def test_readers_on_two_event_loops_share_the_engine(engine: MakeEngine) -> None:
    one = engine()
    expected = [completion.text for completion in one.decode(PROMPTS[:2], PARAMS)]
    texts: dict[int, str] = {}

    async def here(served: AsyncEngine, index: int) -> None:
        texts[index] = (await read(served.generate(PROMPTS[index], PARAMS)))[0]

    served = AsyncEngine(one)
    threads = [threading.Thread(target=lambda index=index: run(here(served, index))) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(served.close())
    assert [texts[0], texts[1]] == expected
