"""From a body to a response: its requests are started, and become one JSON object or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ssd.errors import SsdError
from ssd.requests import Completion
from ssd.server.answers import Answer, ChatAnswer, TextAnswer
from ssd.server.errors import ApiError
from ssd.server.protocol import ChatBody, CompletionBody
from ssd.server.reader import Chunk, Reader
from ssd.server.served import Served

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and cancel it as soon as the client closes the connection. The body must have been read."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working


async def _disconnected(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


async def started(served: Served, body: ChatBody | CompletionBody) -> tuple[list[Reader], Answer]:
    """A reader for each choice of each prompt, the choices of a prompt next to each other; and their answer.

    Raises ApiError.
    """
    served.check(body.model)
    try:
        engine = await served.plain() if body.mode == "ar" else served.engine
        readers = await engine.start(
            body.prompts, body.choices(), deadline=served.options.deadline, by_round=body.include_speculation, **body.form
        )
    except SsdError as error:
        raise served.error(error, body.token_limit[0]) from error
    requests = [reader.request for reader in readers]
    prompts = [request.prompt for request in requests]
    if isinstance(body, ChatBody):
        return readers, ChatAnswer(served, requests, len(prompts[0]), body)
    echoed = [served.text(prompt) for prompt in prompts] if body.echo else None
    return readers, TextAnswer(served, requests, sum(len(prompt) for prompt in prompts[:: body.n]), body, echoed)


async def gathered(readers: Sequence[Reader], answer: Answer) -> dict[str, Any]:
    """The answer as one JSON object, once every choice is complete."""
    with _all(readers):
        return answer.whole(list(await asyncio.gather(*[reader.completion() for reader in readers])))


async def whole(request: Request, readers: Sequence[Reader], answer: Answer) -> Response:
    """The response of a request that does not stream."""
    return Json(await unless_gone(request.receive, gathered(readers, answer)))


class EventStream(Response):
    """The answer as server-sent events. translate: an error as the client sees it."""

    media_type = "text/event-stream"

    def __init__(
        self, readers: Sequence[Reader], answer: Answer, include_usage: bool, translate: Callable[[Exception], ApiError]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._readers = readers
        self._answer = answer
        self._include_usage = include_usage
        self._translate = translate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _all(self._readers), suppress(ClientGone):
            await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": _event(encoded(event)), "more_body": True})
        except Exception as error:  # the status is sent already, so the error is an event
            body = encoded(self._translate(error).body)
            await send({"type": "http.response.body", "body": _event(body), "more_body": True})
        await send({"type": "http.response.body", "body": _event(b"[DONE]"), "more_body": False})

    async def _events(self) -> AsyncGenerator[dict[str, Any]]:
        usage: dict[str, Any] = {"usage": None} if self._include_usage else {}
        completions: dict[int, Completion] = {}
        openings = [self._answer.opening(index) for index in range(len(self._readers))]
        for opening in openings:
            if opening is not None:
                yield self._answer.piece([opening]) | usage
        async with aclosing(merged(self._readers)) as chunks:
            async for index, chunk in chunks:
                if chunk.completion is not None:
                    completions[index] = chunk.completion
                if chunk.text or chunk.completion is not None or chunk.logprobs or chunk.committed is not None:
                    yield self._answer.piece([self._answer.delta(index, chunk)]) | usage
        if self._include_usage:
            usage = {"usage": self._answer.usage([completions[index] for index in sorted(completions)])}
            yield self._answer.piece([]) | usage | self._answer.metrics()


async def merged(readers: Sequence[Reader]) -> AsyncGenerator[tuple[int, Chunk]]:
    """The chunks of all readers as they come, each with its reader's index."""
    following = {asyncio.ensure_future(anext(reader)): index for index, reader in enumerate(readers)}
    try:
        while following:
            done, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = following.pop(task)
                chunk = task.result()
                if chunk.completion is None:
                    following[asyncio.ensure_future(anext(readers[index]))] = index
                yield index, chunk
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _all(readers: Sequence[Reader]) -> ExitStack:
    """Closes every reader at its end, and so aborts what has not finished."""
    stack = ExitStack()
    for reader in readers:
        stack.enter_context(reader)
    return stack
