"""Helpers of the server's tests. Imported as `server.cases`."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterable, Callable
from typing import Any

import pytest

from ssd import Completion, Engine
from ssd.server.reader import Chunk


def is_idle_and_whole(engine: Engine) -> bool:
    """Whether no request has a slot or a page."""
    scheduler = engine.core.scheduler
    scheduler.check_integrity()
    return not scheduler.busy and scheduler.pages.available == scheduler.pages.capacity


async def read(chunks: AsyncIterable[Chunk]) -> tuple[str, list[int], Completion]:
    """The joined text and tokens of the chunks, and the completion of the last one."""
    text, ids, completion = "", [], None
    async for chunk in chunks:
        assert completion is None
        text, ids, completion = text + chunk.text, ids + chunk.token_ids, chunk.completion
    assert completion is not None
    return text, ids, completion


def eventually(true: Callable[[], bool]) -> None:
    """Wait until this is true, on a thread that is not the engine's. Fails after 20 s."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Stops an engine's steps, so that a test can arrange requests between two rounds."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps = threading.Semaphore(0)
        self._allowed = self._begun = 0
        step = engine.core.step

        def gated() -> Any:
            self._steps.acquire()
            self._begun += 1
            return step()

        monkeypatch.setattr(engine.core, "step", gated)

    def let(self, steps: int) -> None:
        """Allow this many further steps."""
        self._allowed += steps
        self._steps.release(steps)

    def stepped(self, true: Callable[[], bool]) -> bool:
        """Whether this is true; if not, and all steps have begun, allow one more. For a loop that waits."""
        if not true() and self._begun == self._allowed:
            self.let(1)
        return true()

    def open(self) -> None:
        self.let(10**6)
