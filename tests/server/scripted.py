"""A stand-in for the server, which answers every chat with a script: for texts that no small model writes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ssd.server.options import ServerOptions
from ssd.server.run import listen
from ssd.server.static import ChatPage

Round = dict[str, Any]


@dataclass
class Script:
    """Rounds of an answer. wait: seconds before each. dies: the connection breaks after them. owner: of the server's model."""

    rounds: list[tuple[str, Round | None]]
    wait: float = 0.0
    dies: bool = False
    owner: str = "ssd"
    bodies: list[Any] = field(default_factory=list)  # of the requests so far


def rounds_of(tokens: list[str], accepted: int = 2) -> list[tuple[str, Round | None]]:
    """The tokens in rounds that accept so many of them; one look-up in two is a hit. The first token is the prompt's."""
    found: list[tuple[str, Round | None]] = [(tokens[0], _round(tokens[:1], 0, 0, None))]
    for index, start in enumerate(range(1, len(tokens), accepted + 1)):
        part = tokens[start : start + accepted + 1]
        found.append(("".join(part), _round(part, 4, min(accepted, len(part)), index % 2 == 1)))
    return found


def _round(tokens: list[str], proposed: int, accepted: int, hit: bool | None) -> Round:
    origins = ["cache" if hit else "draft"] * accepted + ["target"] * (len(tokens) - accepted)
    named = [{"origin": origin, "characters": len(token)} for origin, token in zip(origins, tokens, strict=True)]
    return {"proposed": proposed, "accepted": accepted, "hit": hit, "tokens": named}


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """Serve the page and the script until the block's end; gives the address."""
    page = ChatPage()

    async def file(request: Request) -> Response:
        return page.response(request.path_params.get("name", "index.html")) or Response(status_code=404)

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "scripted", "owned_by": script.owner}]})

    async def chat(request: Request) -> Response:
        script.bodies.append(await request.json())
        return StreamingResponse(events(), media_type="text/event-stream")

    async def events() -> AsyncIterator[str]:
        for text, one in script.rounds:
            await asyncio.sleep(script.wait)
            origins = {"speculation": one} if one is not None else {}
            yield _event({"delta": {"content": text}, "finish_reason": None, **origins})
        if script.dies:
            await asyncio.sleep(0.5)  # a browser drops what it has not read when the connection breaks
            raise ConnectionError
        yield _event({"delta": {}, "finish_reason": "stop"})
        yield "data: [DONE]\n\n"

    routes = [Route("/", file), Route("/page/{name}", file), Route("/v1/models", models)]
    app = Starlette(routes=[*routes, Route("/v1/chat/completions", chat, methods=["POST"])])
    bound = listen(ServerOptions(port=0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def _event(choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [choice]})}\n\n"
