"""Prompts from files with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ssd.cli.options import check_text
from ssd.errors import SsdError


def read_prompts(path: Path, field: str) -> Iterator[str]:
    """The prompts of a file, each from the given field of its line: text, or a list that begins with text. Raises SsdError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise SsdError(f"the prompts in {path} cannot be read ({error.strerror}); check the name.") from None
    except UnicodeDecodeError:
        raise SsdError(f"{path} is not UTF-8 text; give a file with one JSON object a line.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise SsdError(f"{path} is empty; give a file with one JSON object a line.")
    for number, line in numbered:
        where = f"line {number} of {path}"
        yield check_text(_prompt_of(line, field, where), f"the prompt on {where}")


def _prompt_of(line: str, field: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise SsdError(f"{where} is not JSON; give one JSON object a line.") from None
    if not isinstance(entry, dict):
        raise SsdError(f"{where} is not a JSON object; give one with the field {field!r} on each line.")
    if field not in entry:
        raise SsdError(f"{where} has no field {field!r}; choose one of {', '.join(map(repr, entry)) or 'none'} with --field.")
    value = entry[field]
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise SsdError(
            f"the field {field!r} on {where} is neither text nor a list that begins with text; choose another with --field."
        )
    return value
