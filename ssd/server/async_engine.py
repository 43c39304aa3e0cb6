"""`AsyncEngine`: an engine for coroutines. A thread steps the core for all requests, and wakes their readers.

The core (ssd/serving/core.py) takes requests at any time; this thread is one of its clients, so `Engine.decode` and
`Engine.stream` of the same engine go on working beside it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal, Self, TypeVar, Unpack

from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.models.prompts import Prompt, PromptForm, token_ids
from ssd.options import SamplingParams
from ssd.requests import Request
from ssd.server.options import ServerOptions
from ssd.server.reader import Chunk, Reader, SlowReader

State = Literal["ok", "degraded", "draining", "failed"]
T = TypeVar("T")

_log = logging.getLogger("ssd.server")


class Refused(SsdError):
    """The engine takes no request now. retry_after: seconds after which it may."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Refused):
    """Too many requests are waiting."""


class Draining(Refused):
    """The engine finishes its requests and takes no further ones."""


class EngineFailed(SsdError):
    """The engine has failed, or was closed, and runs nothing any more."""


class AsyncEngine:
    """An engine whose requests are read by coroutines, on one event loop or on several.

    engine: the engine to run, which `close` closes. max_waiting: number of requests that may wait for a slot. max_unread:
    number of tokens that a stream holds for a slow reader before it ends. on_end: called on the engine's thread with every
    request that has ended.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = ServerOptions.max_waiting,
        max_unread: int = ServerOptions.max_unread,
        on_end: Callable[[Request], None] | None = None,
    ) -> None:
        self.engine = engine
        self._max_waiting = max_waiting
        self._capacity = engine.options.max_batch + max_waiting
        self._max_unread = max_unread
        self._on_end = on_end or (lambda request: None)
        self._changed = threading.Condition()  # guards the fields below
        self._accepted = 0  # requests that have not ended, also those whose prompts are being encoded
        self._readers: set[Reader] = set()  # of requests that have not ended
        self._failure: EngineFailed | None = None
        self._drained: Future[None] | None = None
        self._mean_seconds = 1.0  # of recent requests
        self._encoder = ThreadPoolExecutor(1, "ssd-encoder")  # one thread, so that requests get their seeds in order
        self._thread = threading.Thread(target=self._run, name="ssd-engine", daemon=True)
        self._thread.start()

    # Requests ---------------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        deadline: float | None = ServerOptions.deadline,
        **form: Unpack[PromptForm],
    ) -> AsyncGenerator[Chunk]:
        """Decode one prompt and yield chunks of its text; the last has the completion. Closing it aborts the request.

        deadline: seconds for the request, waiting included. prompt, params, form: as in `Engine.decode`. Raises SsdError for a
        prompt that cannot be used, `Refused` if the engine takes no request now, and the errors of `Reader`.
        """
        (reader,) = await self.start([prompt], [params or SamplingParams()], deadline=deadline, **form)
        with reader:
            async for chunk in reader:
                yield chunk

    async def start(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[SamplingParams],
        *,
        deadline: float | None = ServerOptions.deadline,
        by_round: bool = False,
        **form: Unpack[PromptForm],
    ) -> list[Reader]:
        """Add a request for each choice of each prompt, all or none. by_round: whether a chunk is one round.

        Returns a reader for each, the choices of a prompt next to each other. Raises as `generate` does.
        """
        count = len(prompts) * len(choices)
        self._accept(count)
        try:
            requests = await self._on_encoder(partial(self._requests, prompts, choices, form))
            readers = [Reader(self.engine, request, self._max_unread, deadline, by_round) for request in requests]
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                for request in requests:
                    self.engine.core.add(request)
                self._readers.update(readers)
                self._changed.notify_all()
        except BaseException:
            self._let_go(count)
            raise
        return readers

    async def encode(self, prompt: Prompt, **form: Unpack[PromptForm]) -> list[int]:
        """The token ids of a prompt. Raises SsdError."""
        tokenizer, vocabulary = self.engine.tokenizer, self.engine.target_model.vocab_size
        return await self._on_encoder(partial(token_ids, prompt, tokenizer, vocabulary, **form))

    async def drain(self) -> None:
        """Refuse further requests, and wait until those that were accepted have ended."""
        with self._changed:
            self._drained = self._drained or Future()
        self._let_go(0)
        await asyncio.shield(asyncio.wrap_future(self._drained))

    async def close(self) -> None:
        """End the requests that have not ended, and close the engine."""
        self._fail(EngineFailed("this engine is closed; make another one."))
        await asyncio.to_thread(self._thread.join)
        self._encoder.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def beside(self, engine: Engine) -> AsyncEngine:
        """Another engine with the limits of this one."""
        return AsyncEngine(engine, max_waiting=self._max_waiting, max_unread=self._max_unread, on_end=self._on_end)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # Figures ----------------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """After the draft has failed, it is "degraded"; after the engine has failed or was closed, "failed"."""
        if self._failure is not None:
            return "failed"
        if self._drained is not None:
            return "draining"
        return "degraded" if self.engine.core.failover.failure is not None else "ok"

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return len(self.engine.core.scheduler.admitted)

    @property
    def waiting(self) -> int:
        """Number of accepted requests without a slot."""
        return max(0, self._accepted - self.running)

    # Inside -----------------------------------------------------------------------------------------------------------------

    async def _on_encoder(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoder, call)

    def _requests(self, prompts: Sequence[Prompt], choices: Sequence[SamplingParams], form: PromptForm) -> list[Request]:
        """The requests of `start`. A prompt is encoded once for all its choices."""
        first, *others = choices
        firsts = self.engine.requests(prompts, first, form)
        encoded = [request.prompt for request in firsts for _ in others]
        rest = iter(self.engine.requests(encoded, others * len(firsts), {}))
        return [request for each in firsts for request in (each, *islice(rest, len(others)))]

    def _accept(self, count: int) -> None:
        if count > self._capacity:
            raise SsdError(f"there are {count} requests in one, and at most {self._capacity} fit in the queue; split them.")
        with self._changed:
            if self._failure is not None:
                raise self._failure
            retry_after = math.ceil(min(60, self._mean_seconds * self._accepted / self.engine.options.max_batch)) or 1
            if self._drained is not None:
                raise Draining("the engine finishes its requests and takes no further ones; use another one.", retry_after)
            if self._accepted + count > self._capacity:
                raise QueueFull(
                    f"{self._accepted} requests are running or waiting, and the limit is {self._capacity}; try again in "
                    f"{retry_after} s.",
                    retry_after,
                )
            self._accepted += count

    def _let_go(self, count: int) -> None:
        """Note that accepted requests have ended."""
        with self._changed:
            self._accepted -= count
            if self._drained is not None and not self._accepted and not self._drained.done():
                self._drained.set_result(None)

    def _run(self) -> None:
        """The thread: step for all requests while there are any."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._readers or self._failure)
                if self._failure is not None:
                    return
            try:
                self.engine.core.step()
            except Warning as warning:  # a filter made it an error; the step itself is complete
                _log.warning("%s", one_line(warning))
            except Exception as error:
                failure = EngineFailed(f"the engine has failed ({type(error).__name__}) and runs nothing any more; restart it.")
                failure.__cause__ = error
                _log.error("the engine has failed (%s: %s).", type(error).__name__, one_line(error))
                self._fail(failure)
            self._look()

    def _look(self) -> None:
        """Wake the readers whose requests have grown or ended, with one call for each event loop."""
        with self._changed:
            grown = [reader for reader in self._readers if reader.has_news()]
            ended = [reader for reader in grown if reader.request.finished]
            self._readers.difference_update(ended)
            for reader in ended:
                self._mean_seconds += 0.1 * (time.perf_counter() - reader.request.stats.arrived - self._mean_seconds)
        self._tell_end(ended)
        _wake(grown)
        self._let_go(len(ended))

    def _fail(self, failure: EngineFailed) -> None:
        """End every request with this error, and take no further ones."""
        with self._changed:
            self._failure = self._failure or failure
            ended, self._readers = self._readers, set()
            self._changed.notify_all()
        for reader in ended:
            reader.stop(failure)
        self._tell_end(ended)
        _wake(ended)
        self._let_go(len(ended))

    def _tell_end(self, readers: Iterable[Reader]) -> None:
        for reader in readers:
            try:
                self._on_end(reader.request)
            except Exception as error:  # the caller's own function; the readers must not wait for it
                _log.error("on_end has failed (%s: %s).", type(error).__name__, one_line(error))


def _wake(readers: Iterable[Reader]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Reader]] = {}
    for reader in readers:
        by_loop.setdefault(reader.loop, []).append(reader)
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake_here, those)
        except RuntimeError:  # the loop is closed, so nobody reads any more
            for reader in those:
                reader.stop(SlowReader("the event loop that read this stream is closed."))


def _wake_here(readers: Sequence[Reader]) -> None:
    for reader in readers:
        reader.wake()
