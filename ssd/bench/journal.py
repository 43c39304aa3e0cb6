"""The turns of a benchmark on disk, each written when it ends, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ssd.errors import SsdError

Measurement = dict[str, Any]


class Journal:
    """A file of JSON lines beside the result: what is measured, then the machine's speed, then the turns.

    head: what is measured. A file with another head is refused. Raises SsdError, and OSError where a line cannot be written.
    """

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        if out.exists():
            raise SsdError(f"{out} exists already; remove it, or give another --out.")
        lines = self._whole_lines()
        if lines and (
            different := [key for key in lines[0] | head if lines[0].get(key) != json.loads(json.dumps(head)).get(key)]
        ):
            raise SsdError(
                f"{self.path} is of a benchmark that differs in {', '.join(different)}; remove it, or give another --out."
            )
        self.turns: list[Measurement] = lines[1:]
        if not lines:
            self._write(head)

    def add(self, turn: Measurement) -> None:
        """Keep a turn. It is on the disk when this returns."""
        self._write(turn)
        self.turns.append(turn)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, whole or not at all, and remove the journal. A list has a line for each of its entries."""
        unfinished = self.out.with_name(self.out.name + ".unfinished")
        fields = (f"{json.dumps(name)}: {_lines(value)}" for name, value in result.items())
        unfinished.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")
        unfinished.replace(self.out)
        self.path.unlink()

    def _whole_lines(self) -> list[Measurement]:
        """The lines so far. The last one may have been cut by a full disk or a lost process; it is removed."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise SsdError(f"{self.path} is not the file of a benchmark; remove it, or give another --out.") from None

    def _write(self, line: Measurement) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)
