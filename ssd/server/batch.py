"""Offline batches: lines in the form of OpenAI's batch files, answered by the server's own code, without HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from ssd.engine import Engine
from ssd.errors import SsdError
from ssd.server.async_engine import AsyncEngine
from ssd.server.bodies import checked, document_of
from ssd.server.errors import ApiError
from ssd.server.generation import gathered, started
from ssd.server.options import ServerOptions
from ssd.server.protocol import ChatBody, CompletionBody
from ssd.server.served import Served

PATHS: dict[str, type[ChatBody | CompletionBody]] = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody}
AHEAD = 8  # lines in progress for each slot: the next ones wait for the first, since answers keep the order of the lines
MAX_WAITING = 10**6  # requests; those of the lines in progress

Line = dict[str, Any]


async def answers(engine: Engine, lines: Iterable[Line | ApiError], served_model_name: str | None) -> AsyncGenerator[Line]:
    """The answer to each line, in order.

    lines: from `read_line`; a body may leave the model out. served_model_name: see `ServerOptions`.
    Raises SsdError if the engine fails.
    """
    options = ServerOptions(served_model_name=served_model_name, max_waiting=MAX_WAITING)
    served = Served(AsyncEngine(engine, max_waiting=options.max_waiting), options)
    running: deque[asyncio.Task[Line]] = deque()
    try:
        for line in lines:
            running.append(asyncio.ensure_future(_answer(served, line)))
            if len(running) >= AHEAD * engine.options.max_batch:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await served.close()


def read_line(text: bytes, number: int, field: str, raw: bool, fields: Mapping[str, Any]) -> Line | ApiError:
    """A line of OpenAI's batch files, or one with a prompt, as such a line; or the error by which it is neither.

    number: the line's, its custom_id if it has none and is a prompt. field: the name of a prompt's field. raw: whether prompts
    are continued as they are, without the chat template. fields: further fields of a prompt's body.
    """
    try:
        line = document_of(text)
    except ApiError as error:
        return error
    name = line.get("custom_id", str(number))
    if not isinstance(name, str):
        return ApiError(400, "custom_id is no text; give one that names the line.", code="invalid_line")
    if "body" not in line and field in line:
        prompt = line[field]
        chat = prompt if isinstance(prompt, list) and not raw else [{"role": "user", "content": prompt}]
        url, given = ("/v1/completions", {"prompt": prompt}) if raw else ("/v1/chat/completions", {"messages": chat})
        return {"custom_id": name, "url": url, "body": {**fields, **given}}
    if line.get("method", "POST") != "POST" or line.get("url") not in PATHS or not isinstance(line.get("body"), dict):
        paths = " or ".join(PATHS)
        message = f"the line has no field {field!r}, and is no request: that has a custom_id, the url {paths}, and a body."
        return ApiError(400, message, param=name, code="invalid_line")
    return {"custom_id": name, "url": line["url"], "body": line["body"]}


async def _answer(served: Served, line: Line | ApiError) -> Line:
    if isinstance(line, ApiError):
        return _written(line.param, line.status, {**line.body["error"], "param": None}, failed=True)
    try:
        body = checked({"model": served.name, **line["body"]}, PATHS[line["url"]])
        if body.stream:
            raise ApiError(
                400, "stream is true, and a batch has no streams; leave it out.", param="stream", code="invalid_value"
            )
        return _written(line["custom_id"], 200, await gathered(*await started(served, body)))
    except Exception as error:
        refusal = served.error(error)
        if refusal.code in ("engine_failed", "engine_error"):
            raise SsdError(f"the batch ended at {line['custom_id']!r}: {str(refusal).removesuffix('.')}.") from error
        return _written(line["custom_id"], refusal.status, refusal.body)


def _written(name: str | None, status: int, body: dict[str, Any], failed: bool = False) -> Line:
    """A line of the output. failed: whether the line could not be read; `body` is the error, and there is no response."""
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": name,
        "response": None if failed else response,
        "error": body if failed else None,
    }
