"""Options that several commands share, each said once; ssd/options.py checks their values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssd.cli.console import progress_bar
from ssd.errors import SsdError, one_line

if TYPE_CHECKING:
    from ssd.engine import Engine


class WrongUsage(SsdError):
    """Options that make no sense together, whatever their values."""


MODELS, SPECULATION, MACHINE, SAMPLING, OUTPUT = "Models", "Speculation", "Machine", "Sampling", "Output"


def option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=True)


Target = Annotated[
    str,
    option("--target", "-m", help="A known model, a Hugging Face directory, a .gguf file or a hub id.", panel=MODELS),
]
Draft = Annotated[
    str,
    option(
        "--draft",
        help="A model like the target, 'self:N' (the target's first N layers), 'ngram' (no model), 'none', or 'auto': "
        "the known draft of the target, if any.",
        panel=MODELS,
    ),
]
Lookahead = Annotated[int, option("--lookahead", "-k", help="Draft tokens a round.", panel=SPECULATION)]
Budget = Annotated[int, option("--budget", "-b", help="Branches prepared a round and sequence.", panel=SPECULATION)]
Dtype = Annotated[
    str, option("--dtype", help="'bfloat16', 'float32', or 'auto': bfloat16 where the machine computes in it.", panel=MACHINE)
]
Mode = Annotated[
    str,
    option(
        "--mode",
        help="'ar' (autoregressive), 'sd' (speculative), 'ssd' (speculative speculative), or 'auto'.",
        panel=SPECULATION,
    ),
]
Device = Annotated[str, option("--device", help="'cpu' (also 'auto'), 'cuda' or 'cuda:N'.", panel=MACHINE)]
DraftDevice = Annotated[
    str | None, option("--draft-device", help="A GPU for the draft, 'cuda:N'; without it, the target's.", panel=MACHINE)
]
DraftSms = Annotated[
    int | None, option("--draft-sms", help="Multiprocessors of the shared GPU that the draft may use.", panel=MACHINE)
]
GpuMemoryUtilization = Annotated[
    float, option("--gpu-memory-utilization", help="Of a GPU's memory, for weights and K/V.", panel=MACHINE)
]
MaxBatch = Annotated[int, option("--max-batch", help="Sequences running at once.", panel=MACHINE)]
MaxContext = Annotated[int | None, option("--max-context", help="Tokens of a sequence, prompt and output.", panel=MACHINE)]
Threads = Annotated[int | None, option("--threads", help="Threads of the target.", panel=MACHINE)]
DraftThreads = Annotated[int | None, option("--draft-threads", help="Threads of ssd's draft.", panel=MACHINE)]
Pace = Annotated[
    str | None,
    option(
        "--pace",
        help="Milliseconds that every pass of the target and of the draft lasts at least, as if each had hardware of its own.",
        panel=MACHINE,
        metavar="VERIFY,DRAFT",
    ),
]
MaxNewTokens = Annotated[int, option("--max-new-tokens", "-n", help="Tokens generated at most.", panel=SAMPLING)]
Trace = Annotated[
    Path | None,
    option("--trace", help="Write a timeline here, for chrome://tracing or Perfetto.", panel=OUTPUT, metavar="FILE.json"),
]
Json = Annotated[bool, option("--json", help="Print JSON.", panel=OUTPUT)]


def parse_draft(draft: str) -> str | None:
    return None if draft.lower() == "none" else draft


def parse_fan_out(fan_out: str) -> str | tuple[int, ...]:
    """A name, or whole numbers with commas between them. Raises SsdError."""
    if not re.search(r"[\d,]", fan_out):
        return fan_out
    try:
        return tuple(int(number) for number in fan_out.split(","))
    except ValueError:
        raise SsdError(
            f"--fan-out is {fan_out!r}; give a name, or whole numbers with commas between them: 4,2,1,1,0."
        ) from None


def parse_tree(tree: str | None) -> tuple[int, ...] | None:
    """Raises SsdError unless it is whole numbers with commas between them."""
    return parse_numbers("--tree", tree, "children a node, level by level,", "3,2,1,1")


def parse_numbers(name: str, text: str | None, what: str, example: str) -> tuple[int, ...] | None:
    """Whole numbers with commas between them. Raises SsdError."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise SsdError(f"{name} is {text!r}; give {what} with commas between them: {example}.") from None


def parse_pace(pace: str | None) -> tuple[float, float] | None:
    """Raises SsdError unless it is two numbers with a comma between them."""
    if pace is None:
        return None
    try:
        verify, draft = (float(number) for number in pace.split(","))
    except ValueError:
        raise SsdError(f"--pace is {pace!r}; give two numbers of milliseconds with a comma between them: 200,24.") from None
    return verify, draft


def check_text(text: str, where: str) -> str:
    """Raises SsdError for what no text file could hold: half of a surrogate pair, or bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SsdError(f"{where} is not valid Unicode text; give it as UTF-8.") from None
    return text


def check_writable(path: Path | None) -> None:
    """Before the work is done, not after it. Raises SsdError."""
    if path is None:
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise SsdError(
            f"the trace cannot be written to {path} ({error.strerror or one_line(error)}); choose another file."
        ) from None


@contextmanager
def loaded_engine(description: str, **options: Any) -> Iterator[Engine]:
    """An engine with these arguments, closed behind the block; a bar on stderr while it loads."""
    with progress_bar(description, after=f"{description}: preparing the weights") as progress:
        from ssd.engine import Engine

        engine = Engine(**options, progress=progress)
    with engine:
        yield engine
