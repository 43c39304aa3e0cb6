"""The chunks of one request, for one coroutine. The engine's thread wakes it; the text itself stays in the request.

A chunk is everything that is new since the chunk before it. So there is no queue: a reader that comes late gets a larger chunk.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Self

from ssd.decoding.stats import Committed
from ssd.engine import Engine
from ssd.errors import SsdError
from ssd.requests import Completion, Request


class DeadlinePassed(SsdError):
    """A request was not finished by its deadline."""


class SlowReader(SsdError):
    """A reader left too many tokens unread."""


@dataclass(frozen=True)
class Chunk:
    """The text and tokens that are new since the last chunk.

    logprobs: a dict for each of the tokens, as in `Completion`; None unless the parameters ask for it. completion: the whole,
    in the last chunk; None before. committed: with a reader "by round", the round that the tokens came from. characters: then
    the number of characters of each token. Their text comes in a later chunk while it may still become a stop string.
    """

    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]] | None
    completion: Completion | None
    committed: Committed | None = None
    characters: tuple[int, ...] = ()


class Reader:
    """An asynchronous iterator over the chunks of a request. Closing it aborts the request. by_round: a chunk is one round.

    Iteration raises `DeadlinePassed`, `SlowReader`, and an error of the engine that ended the request.
    """

    def __init__(
        self, engine: Engine, request: Request, max_unread: int, deadline: float | None, by_round: bool = False
    ) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self._engine = engine
        self._max_unread = max_unread
        self._woken = asyncio.Event()
        self._tokens = 0  # taken by the reader
        self._characters = 0  # taken by the reader
        self._by_round = by_round
        self._rounds = 0  # taken by the reader
        self._noticed = 0  # tokens of which the reader was told
        self._takes_chunks = True
        self._stopped: Exception | None = None
        self._closed = False
        self._timer = self.loop.call_later(deadline, self._expire, deadline) if deadline is not None else None

    # On the engine's thread -------------------------------------------------------------------------------------------------

    def has_news(self) -> bool:
        """Whether the reader must be woken. A request that its reader leaves unread for too long is stopped."""
        finished, tokens = self.request.finished, len(self.request.token_ids)
        if not finished and self._takes_chunks and tokens - self._tokens > self._max_unread:
            self.stop(
                SlowReader(
                    f"{tokens - self._tokens} tokens of the stream were left unread, and the limit is {self._max_unread}; read faster, "
                    "or ask for the whole answer at once."
                )
            )
            return True
        news = finished or (self._takes_chunks and tokens > self._noticed)
        self._noticed = tokens
        return news

    def stop(self, error: Exception) -> None:
        """End the request, and the iteration with this error. Does nothing for a finished request. Any thread may call it."""
        if not self.request.finished:
            self._stopped = self._stopped or error
            self._engine.core.abort(self.request)

    def wake(self) -> None:
        """On the reader's loop: let it look at the request again."""
        self._woken.set()

    # For the reader ---------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        while True:
            self._woken.clear()
            finished = self.request.finished  # before the text: that of a finished request is whole
            chunk = self._take(finished)
            if chunk.completion is not None or chunk.text or chunk.token_ids:
                return chunk
            await self._woken.wait()

    async def completion(self) -> Completion:
        """Wait for the end. The tokens until then do not count as unread, and wake nobody."""
        self._takes_chunks = self._by_round = False
        while True:
            self._woken.clear()
            if (self.request.finished or self._stopped) and (completion := self._take(True).completion) is not None:
                return completion
            await self._woken.wait()

    def close(self) -> None:
        """Abort the request, unless it has finished."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._engine.core.abort(self.request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _take(self, finished: bool) -> Chunk:
        """What is new. Raises the error that ended the request."""
        request = self.request
        if self._stopped is not None and request.finish_reason in (None, "aborted"):
            self.close()
            raise self._stopped
        tokens = len(request.token_ids)
        if request.params.logprobs and not finished:
            tokens = min(tokens, len(request.logprobs))  # they follow their tokens
        text = request.certain_text()
        first, shown = self._tokens, self._characters
        committed: Committed | None = None
        characters: tuple[int, ...] = ()
        if self._by_round:
            committed, rounds = self._next_round(first, tokens), len(request.stats.committed)
            tokens = first + (committed.tokens if committed is not None else 0)
            ends = [0, *request.text_ends][first : tokens + 1]
            characters = tuple(after - before for before, after in itertools.pairwise(ends))
            finished = finished and self._rounds == rounds
            text = text if finished else text[: max(shown, ends[-1])]
        self._tokens, self._characters = tokens, len(text)
        completion = None
        if finished:
            self.close()
            completion = request.completion(self._engine.mode)
        logprobs = request.logprobs[first:tokens] if request.params.logprobs else None
        return Chunk(text[shown:], request.token_ids[first:tokens], logprobs, completion, committed, characters)

    def _next_round(self, first: int, ready: int) -> Committed | None:
        """The next round that the reader has not taken, if its tokens, from number `first` on, are among the `ready` ones."""
        committed = self.request.stats.committed
        if self._rounds == len(committed) or first + committed[self._rounds].tokens > ready:
            return None
        self._rounds += 1
        return committed[self._rounds - 1]

    def _expire(self, deadline: float) -> None:
        self.stop(
            DeadlinePassed(f"the request was not finished after {deadline:g} s; ask for fewer tokens, or allow more time.")
        )
        self.wake()
