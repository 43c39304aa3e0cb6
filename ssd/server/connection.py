"""A connection that does not wait forever: uvicorn's h11 protocol, with limits on a client's time."""

from __future__ import annotations

import asyncio
from typing import Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ssd.server.access import MAX_HEADER_BYTES
from ssd.server.errors import ApiError
from ssd.server.generation import encoded

REQUEST_SECONDS = 60.0  # for a request to arrive, headers and body
READ_SECONDS = 60.0  # for a client to take the part of an answer that fills the buffers


class PatientConnection(H11Protocol):
    """Closes the connection of a client that takes too long to send its request or to read the answer."""

    _arriving: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_arriving")
        self._stop("_unread")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_arrival()

    def _watch_arrival(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._arriving = self._arriving or self.loop.call_later(REQUEST_SECONDS, self.transport.close)
        else:
            self._stop("_arriving")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_unread")

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is no HTTP, or has too large headers, in the form of all errors."""
        if self.conn.our_state is h11.IDLE:
            refusal = f"the request is not valid HTTP, or its headers are over {MAX_HEADER_BYTES} bytes; send another one."
            body = encoded(ApiError(400, refusal).body)
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _stop(self, name: Literal["_arriving", "_unread"]) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
        setattr(self, name, None)
