"""Who may ask, and what was asked: the API key, X-Request-Id, and one line a request in the access log. Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from asyncio import CancelledError
from collections.abc import Iterable
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssd.server.errors import ApiError
from ssd.server.generation import Json

OPEN_PATHS = ("/health", "/")  # these need no key, nor does a file of the chat page
MAX_HEADER_BYTES = 16384  # of a request's path and headers
CLIENT_GONE = 499  # nginx's status, in the log, for a client that went away before its answer was complete

_log = logging.getLogger("ssd.access")
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class KeyCheck:
    """Refuses a request without the key. key: None asks for none."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._expected = _digest(key.encode()) if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._expected is not None and not _is_open(scope["path"]):
            scheme, _, key = _header(scope["headers"], b"authorization").partition(b" ")
            # Digests have one length, so the time of the comparison says nothing about the key.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(key.strip()), self._expected):
                refusal = ApiError(
                    401, "the API key is missing or wrong; send 'Authorization: Bearer KEY'.", code="invalid_api_key"
                )
                app = Json(refusal.body, 401, {"www-authenticate": "Bearer"})
        await app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/page/")


class Front:
    """The outermost layer: gives a request its id, answers errors that nothing else caught, and logs one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope["headers"], b"x-request-id")
        request_id = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        began, status, complete, failure = time.perf_counter(), 0, False, ""

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
                status = message["status"]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        app = self._app
        if _size(scope) > MAX_HEADER_BYTES:  # h11 limits only those that come in several parts
            refusal = ApiError(431, f"the path and the headers are over {MAX_HEADER_BYTES} bytes; send less.")
            app = Json(refusal.body, refusal.status)
        try:
            await app(scope, receive, send_with_id)
        except (Exception, CancelledError) as error:  # cancelled: the server stops, and has waited long enough
            failure = type(error).__name__
            if not status:
                refusal = ApiError.of_status(503 if isinstance(error, CancelledError) else 500)
                await Json(refusal.body, refusal.status)(scope, receive, send_with_id)
        if not complete and not failure:
            status = CLIENT_GONE
        fields: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": (scope.get("client") or ("-",))[0],
            "method": scope["method"],
            "path": quote(scope["path"]),
            "status": status,
            "seconds": f"{time.perf_counter() - began:.3f}",
            "id": request_id.decode(),
        }
        if failure:
            fields["error"] = failure
        _log.info("%s", " ".join(f"{name}={value}" for name, value in fields.items()))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _size(scope: Scope) -> int:
    return len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in scope["headers"])


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")
