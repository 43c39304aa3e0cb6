"""The server's paths. A body is read and refused here (bodies.py), before it reaches the engine."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ssd.errors import SsdError
from ssd.server.access import CLIENT_GONE, Front, KeyCheck
from ssd.server.bodies import read_body
from ssd.server.errors import ApiError
from ssd.server.generation import ClientGone, EventStream, Json, started, whole
from ssd.server.metrics import Figures
from ssd.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from ssd.server.served import Served
from ssd.server.static import ChatPage


def make_app(served: Served, figures: Figures, key: str | None) -> ASGIApp:
    """The whole server as one ASGI application. key: the API key that requests must carry, or None."""
    app: ASGIApp = KeyCheck(_paths(served, figures), key)
    if served.options.cors_origin:
        app = CORSMiddleware(
            app, allow_origins=list(served.options.cors_origin), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return Front(app)


def _paths(served: Served, figures: Figures) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    engine, largest = served.engine.engine, served.options.max_body_mb * 10**6
    files = ChatPage()

    @app.get("/")
    @app.get("/page/{name}")
    async def page(name: str = "index.html") -> Response:
        if (file := files.response(name)) is None:
            raise HTTPException(404)
        return file

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _respond(request, served, await read_body(request, ChatBody, largest))

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _respond(request, served, await read_body(request, CompletionBody, largest))

    @app.get("/v1/models")
    async def models() -> Response:
        return Json({"object": "list", "data": [served.card]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        served.check(model)
        return Json(served.card)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read_body(request, TokenizeBody, largest)
        served.check(body.model)
        if body.prompt is not None:
            ids = await served.engine.encode(body.prompt, raw=True)
        else:
            messages = [message.model_dump(exclude_unset=True) for message in body.messages or ()]
            ids = await served.engine.encode(messages, tools=body.tools, chat_template_kwargs=body.chat_template_kwargs)
        return Json({"tokens": ids, "count": len(ids), "max_model_len": engine.max_context})

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeBody, largest)
        served.check(body.model)
        size = engine.target_model.vocab_size
        if wrong := [token for token in body.tokens if not 0 <= token < size]:
            raise ApiError(400, f"tokens has id {wrong[0]}; the model has ids 0 to {size - 1}.", param="tokens")
        return Json({"prompt": served.text(body.tokens)})

    @app.get("/health")
    async def health() -> Response:
        state = served.engine.state
        return Json({"status": state}, 200 if state in ("ok", "degraded") else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(figures.text(), media_type="text/plain; version=0.0.4")

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientGone | ClientDisconnect):
            return Response(status_code=CLIENT_GONE)  # for the log; nobody gets it
        refusal = (
            ApiError.of_status(error.status_code, error.headers) if isinstance(error, HTTPException) else served.error(error)
        )
        return Json(refusal.body, refusal.status, refusal.headers)

    for kind in (ApiError, SsdError, HTTPException, ClientGone, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)
    return app


async def _respond(request: Request, served: Served, body: ChatBody | CompletionBody) -> Response:
    readers, answer = await started(served, body)
    if body.stream:
        return EventStream(readers, answer, body.include_usage, served.error)
    return await whole(request, readers, answer)
