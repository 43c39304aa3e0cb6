"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}. A message names no path and shows no prompt."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from ssd.errors import SsdError
from ssd.server.async_engine import EngineFailed, Refused
from ssd.server.reader import DeadlinePassed, SlowReader

_log = logging.getLogger("ssd.server")

INVALID, SERVER = "invalid_request_error", "server_error"
NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients repeat a request after a status from 500 on, unless told


class ApiError(Exception):
    """A refusal or a failure, as the client sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = INVALID if self.status < 500 else SERVER
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @classmethod
    def of_status(cls, status: int, headers: Mapping[str, str] | None = None) -> ApiError:
        """For a request that reached no path, or whose answer broke off."""
        messages = {
            404: "there is nothing at this path; see docs/serving.md for those there are.",
            405: "this path does not take this method; see docs/serving.md for those it takes.",
            503: "the server has ended before the answer was complete; send the request again.",
        }
        message = messages.get(status, f"the request cannot be answered ({HTTPStatus(status).phrase}).")
        return cls(status, message, code="not_found" if status == 404 else None, headers=headers)


def api_error(error: Exception, renamed: Mapping[str, str]) -> ApiError:
    """Any error as the client sees it. renamed: words of the engine's own messages, and the client's words for them."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, SsdError):
        _log.error("a request failed inside the engine (%s).", type(error).__name__)
        message = (
            f"the engine failed while it answered this request ({type(error).__name__}); try again, or ask whoever runs it."
        )
        return ApiError(500, message, code="engine_error", headers=NO_RETRY)
    message = str(error)
    for ours, theirs in renamed.items():
        message = message.replace(ours, theirs)
    if isinstance(error, Refused):
        return ApiError(503, message, code="overloaded", headers={"retry-after": str(error.retry_after)})
    if isinstance(error, EngineFailed):
        return ApiError(503, message, code="engine_failed", headers=NO_RETRY)
    if isinstance(error, DeadlinePassed):
        return ApiError(504, message, code="deadline_passed", headers=NO_RETRY)
    if isinstance(error, SlowReader):
        return ApiError(500, message, code="slow_reader", headers=NO_RETRY)
    named = re.match(r"([a-z_]+) (is|has) ", message)
    return ApiError(400, message, param=named[1] if named else None)
