"""Prompts from files with one JSON object a line, and the JSON that goes with them: tools, and variables of a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd.cli.options import check_text
from ssd.errors import SsdError

if TYPE_CHECKING:
    from ssd.bench.sets import PromptSet
    from ssd.models.prompts import Prompt


def read_prompts(path: Path, field: str) -> Iterator[Prompt]:
    """The prompts of a file, each from the given field of its line: text, a list that begins with text, or a list of messages.

    Raises SsdError.
    """
    for where, value in _values(path, field):
        is_chat = isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)
        yield value if is_chat else _text(value, field, where)


def prompt_set(name: str, field: str, limit: int) -> PromptSet:
    """A built-in set, or a file of prompts. limit: largest number of prompts; 0 takes all. Raises SsdError."""
    from ssd.bench.sets import BUILT_IN, PromptSet

    if name in BUILT_IN:
        prompts = list(BUILT_IN[name].prompts)
    elif Path(name).suffix or Path(name).exists():
        prompts, name = list(read_prompts(Path(name), field)), Path(name).stem
    else:
        raise SsdError(f"there is no set of prompts {name!r}; choose {', '.join(BUILT_IN)}, or give a file of JSON lines.")
    return PromptSet(name, prompts[: limit or None])


def read_texts(path: Path, field: str) -> Iterator[str]:
    """The prompts of a file that has no conversations. Raises SsdError."""
    for where, value in _values(path, field):
        yield _text(value, field, where)


def read_tools(path: Path | None) -> list[Any] | None:
    """The JSON schemas of tools in a file. Raises SsdError."""
    if path is None:
        return None
    tools = _parse(_read(path, "the tools", "a JSON list of function schemas"), str(path))
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise SsdError(f"{path} is not a list of tools; give a JSON list of function schemas.")
    return tools


def parse_variables(flag: str, text: str | None) -> dict[str, Any] | None:
    """The variables of a chat template, from a flag's JSON object. Raises SsdError."""
    if text is None:
        return None
    variables = _parse(text, f"the value of {flag}")
    if not isinstance(variables, dict):
        raise SsdError(f"the value of {flag} is {text}; give a JSON object, such as '{{\"enable_thinking\": false}}'.")
    return variables


def _values(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """Each line's place and the value of its field."""
    lines = _read(path, "the prompts", "a file with one JSON object a line").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise SsdError(f"{path} is empty; give a file with one JSON object a line.")
    for number, line in numbered:
        where = f"line {number} of {path}"
        entry = _parse(line, where)
        if not isinstance(entry, dict):
            raise SsdError(f"{where} is not a JSON object; give one with the field {field!r} on each line.")
        if field not in entry:
            raise SsdError(
                f"{where} has no field {field!r}; choose one of {', '.join(map(repr, entry)) or 'none'} with --field."
            )
        yield where, entry[field]


def _text(value: Any, field: str, where: str) -> str:
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise SsdError(
            f"the field {field!r} on {where} is neither text nor a list that begins with text; choose another with --field."
        )
    return check_text(value, f"the prompt on {where}")


def _read(path: Path, what: str, wanted: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SsdError(f"{what} in {path} cannot be read ({error.strerror}); check the name.") from None
    except UnicodeDecodeError:
        raise SsdError(f"{path} is not UTF-8 text; give {wanted}.") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SsdError(f"{where} is not JSON; check its quotes and brackets.") from None
