"""Helpers of the server's tests. Imported as `server.cases`."""

from __future__ import annotations

from collections.abc import AsyncIterable

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
