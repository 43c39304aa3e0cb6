"""The body of a request: bytes of bounded size, then JSON of bounded depth, then a checked model (protocol.py)."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from ssd.server.errors import ApiError
from ssd.server.protocol import OFF, WANTED, Body

MAX_DEPTH = 64  # of JSON: objects and lists within each other

B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B], most: int) -> B:
    """Read and check a request's body. most: its largest size in bytes. Raises ApiError."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ApiError(415, "the body must be JSON; send it with 'Content-Type: application/json'.")
    too_large = ApiError(413, f"the body is over {most} bytes; shorten it, or raise the server's --max-body-mb.")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > most:
            raise too_large
    return checked(document_of(bytes(received)), kind)


def document_of(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        document = json.loads(body.decode(), parse_constant=refuse_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8; send JSON in UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # also for a number of thousands of digits
        raise ApiError(400, "the body is not valid JSON; send one JSON object.") from None
    if not isinstance(document, dict):
        raise ApiError(400, "the body is not a JSON object; send one.")
    _check_values(document)
    return document


def checked(document: dict[str, Any], kind: type[B]) -> B:
    """The body as a model. null is the same as leaving a field out. Raises ApiError, which names the field."""
    given = {name: value for name, value in document.items() if value is not None}
    for name, off in OFF.items():
        if name not in given or name in kind.model_fields:
            continue
        if not any(type(value) is type(given[name]) and value == given[name] for value in off):
            raise ApiError(
                400, f"{name} is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
            )
        del given[name]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None


def _check_values(document: dict[str, Any]) -> None:
    """Raise ApiError for JSON that is nested too deeply, or has half of a surrogate pair."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii():
                _check_text(value)
        if not below:
            return
        level = below
    if any(isinstance(value, dict | list) for value in level):
        raise _too_deep()


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body holds half of a surrogate pair; send valid Unicode.") from None


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested more than {MAX_DEPTH} levels deep; send a flatter one.")


def _refusal(error: ValidationError) -> ApiError:
    """The first of pydantic's complaints as one sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    field = next((part for part in reversed(path) if part in WANTED), None)
    if first["type"] == "extra_forbidden":
        name = ".".join(filter(None, [name.rpartition(".")[0], str(first["loc"][-1])[:60]]))
        return ApiError(400, f"{name} is not a known field; leave it out.", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing; give it.", param=name, code="missing_parameter")
    if field is not None:
        name = name[: name.index(str(field)) + len(str(field))]
        return ApiError(400, f"{name} must be {WANTED[str(field)]}.", param=name, code="invalid_type")
    if first["type"] == "value_error":
        return ApiError(400, first["msg"].removeprefix("Value error, "), param=name or None, code="invalid_value")
    wanted = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{name} is wrong: {wanted}.", param=name, code="invalid_type")
