"""`ssd batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ssd.cli import options as o
from ssd.cli.console import INTERRUPTED, count_bar, say
from ssd.cli.sources import fields_of
from ssd.errors import SsdError
from ssd.options import EngineOptions, SamplingParams

if TYPE_CHECKING:
    from ssd.server.batch import Line
    from ssd.server.errors import ApiError

SYNC_SECONDS = 1.0  # the longest time that an answer is in the system's memory only


@o.takes(without=("logprobs", "cache_salt", "pace"))
def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="IN.jsonl", help="Requests in the form of OpenAI's batch files, or prompts, one JSON object a line."
        ),
    ],
    model: o.Target = None,
    *,
    out: Annotated[
        Path,
        o.option(
            "--out", help="File for the answers; those that it has already are kept.", panel=o.OUTPUT, metavar="OUT.jsonl"
        ),
    ],
    field: Annotated[
        str,
        o.option(
            "--field",
            help="Field of the prompt, in lines that are no requests; the sampling options are for these.",
            panel=o.PROMPTS,
        ),
    ] = "prompt",
    raw: Annotated[
        bool,
        o.option("--raw", help="Continuation of such prompts as they are, without the model's chat template.", panel=o.PROMPTS),
    ] = False,
    served_model_name: Annotated[
        str | None,
        o.option("--served-model-name", help="Name of the model in the requests; the target's unless given.", panel=o.PROMPTS),
    ] = None,
    options: EngineOptions,
    params: SamplingParams,
) -> None:
    """Answer a file of requests, in their order. An interrupted batch goes on when the same command is given again."""
    with o.server_extra("ssd batch"):
        from ssd.server.batch import answers, read_line

    options = replace(options, target=o.target_of(model, options) or options.target)

    def lines() -> Iterator[Line | ApiError]:
        with file.open("rb") as source:
            texts = (text for text in source if text.strip())
            for number, text in enumerate(texts, 1):
                yield read_line(text, number, field, raw, fields_of(params))

    try:
        names = [_name(line) for line in lines()]
    except OSError as error:
        raise SsdError(f"the requests in {file} cannot be read ({error.strerror}); check the name.") from None
    written = _written(out, names)
    if written < len(names):
        with o.loaded_engine(f"Loading {options.target}", options) as engine, out.open("ab") as sink:
            writer = _Writer(sink, written, len(names))
            try:
                asyncio.run(writer.write(answers(engine, islice(lines(), written, None), served_model_name)))
            except KeyboardInterrupt:
                say(
                    f"interrupted after {writer.written} of {len(names)} answers, which are in {out}; the same command goes on."
                )
                raise typer.Exit(INTERRUPTED) from None
    say(f"{out} has all {len(names)} answers.")


def _name(line: Line | ApiError) -> str | None:
    """Its custom_id, if it can be read."""
    return line["custom_id"] if isinstance(line, dict) else line.param


def _written(out: Path, names: list[str | None]) -> int:
    """The number of answers that the file has. A last line that was cut is removed. Raises SsdError for answers to others."""
    if not out.exists():
        return 0
    count = 0
    with out.open("rb+") as file:
        for text in file:
            if not text.endswith(b"\n"):
                file.truncate(file.tell() - len(text))
                break
            try:
                name = json.loads(text)["custom_id"]
            except (ValueError, TypeError, KeyError):
                raise SsdError(f"line {count + 1} of {out} is no answer of a batch; give another --out.") from None
            if count >= len(names) or name != names[count]:
                raise SsdError(f"line {count + 1} of {out} answers another request ({name!r}); give another --out.")
            count += 1
    return count


class _Writer:
    """Writes answers as they come, and shows how many are still to come."""

    def __init__(self, file: BinaryIO, written: int, of: int) -> None:
        self._file = file
        self._of = of
        self._synced = time.monotonic()
        self.written = written

    async def write(self, answers: AsyncGenerator[Line]) -> None:
        try:
            with count_bar("Answering") as show:
                async with aclosing(answers):
                    async for answer in answers:
                        self._file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                        self.written += 1
                        show(self.written, self._of)
                        if time.monotonic() - self._synced > SYNC_SECONDS:
                            self._sync()
        finally:
            self._sync()

    def _sync(self) -> None:
        """Bring the answers so far onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()
