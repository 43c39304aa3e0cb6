"""Command-line flags made from the options of ssd/options.py, and the few flags that commands share beside those."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ssd.cli.console import progress_bar
from ssd.distill.recipe import DATA, STUDENT, TRAINING
from ssd.errors import SsdError, one_line
from ssd.fields import Option, build, flat, options_of
from ssd.options import MACHINE, MODELS, SAMPLING, SPECULATION, EngineOptions
from ssd.server.options import ACCESS, SERVER

if TYPE_CHECKING:
    from ssd.engine import Engine


class WrongUsage(SsdError):
    """Options that make no sense together, whatever their values."""


SERVER_EXTRA = ("fastapi", "starlette", "pydantic", "uvicorn", "h11", "prometheus_client")  # packages

PROMPTS = "Prompts"
OUTPUT, BENCH = "Output", "Benchmark"
SIMULATED, PLAN = "Simulation", "Plan"
PANELS = (
    PROMPTS,
    BENCH,
    PLAN,
    SIMULATED,
    SERVER,
    ACCESS,
    MODELS,
    SPECULATION,
    SAMPLING,
    STUDENT,
    DATA,
    TRAINING,
    MACHINE,
)  # headings of a command's help, in this order

Command = Callable[..., None]


def option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=True)


Trace = Annotated[
    Path | None,
    option("--trace", help="File for a timeline, for chrome://tracing or Perfetto.", panel=OUTPUT, metavar="FILE.json"),
]
Target = Annotated[str | None, typer.Argument(metavar="TARGET", help="Target model; the same as --target.", show_default=False)]
Json = Annotated[bool, option("--json", help="Output as JSON.", panel=OUTPUT)]


def takes(*, only: Collection[str] = (), without: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Give a command the flags of the options that it takes.

    A parameter whose type is a dataclass of options, such as `EngineOptions`, becomes a flag for each of them; the command is
    called with an object built from their values. An option of two such dataclasses belongs to the first. only: the options
    that get a flag, if not all do. without: options that get none. defaults: defaults that differ in this command.
    """

    def decorate(command: Command) -> Command:
        types = get_type_hints(command, include_extras=True)
        taken: dict[str, dict[str, Option]] = {}  # options by name, by the parameter that takes them
        before: list[Parameter] = []
        after: list[Parameter] = []
        for parameter in signature(command).parameters.values():
            cls = types[parameter.name]
            if is_dataclass(cls):
                others = {name for options in taken.values() for name in options}
                taken[parameter.name] = {
                    name: each
                    for name, each in options_of(cls).items()
                    if name not in {*others, *without} and (not only or name in only)
                }
            else:
                own = parameter.replace(annotation=cls, kind=Parameter.KEYWORD_ONLY)
                (after if taken else before).append(own)
        flags = [each for options in taken.values() for each in options.values()]
        assert {*only, *defaults} <= {each.name for each in flags}
        flags.sort(key=lambda each: PANELS.index(each.panel))
        parameters = [*before, *(_parameter(each, defaults.get(each.name, each.default)) for each in flags), *after]

        @wraps(command)
        def run(**given: Any) -> None:
            for name, options in taken.items():
                given[name] = build(types[name], {each.name: _value(each, given.pop(each.name)) for each in options.values()})
            command(**given)

        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(each: Option, default: Any) -> Parameter:
    """A parameter that typer makes a flag of."""
    kind: Any = each.kind
    help = each.help
    if each.repeats:
        kind, default, help = list[str] | None, None, f"{help} May be given several times."
    elif default is None:
        kind = kind | None
    switch = f"{each.flag}/{each.flag.replace('--', '--no-', 1)}" if default is True else each.flag
    names = (switch, each.short) if each.short else (switch,)
    flag = option(*names, help=help, panel=each.panel, metavar=each.metavar)
    return Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag])


def _value(each: Option, given: Any) -> Any:
    """The option's value from the command line's. Raises SsdError."""
    if each.repeats:
        return tuple(check_text(text, f"the text of {each.flag}") for text in given or ())
    return each.parse(each.flag, given) if each.parse is not None and given is not None else given


def target_of(argument: str | None, options: EngineOptions) -> str | None:
    """The target named by an argument or by --target; None if neither names one. Raises WrongUsage if both do."""
    named = options.target if options.target != EngineOptions.target else None
    if argument is not None and named is not None:
        raise WrongUsage("give TARGET or --target, one of the two.")
    return argument or named


def check_text(text: str, where: str) -> str:
    """Raises SsdError for text that no UTF-8 file can hold: half of a surrogate pair, or bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SsdError(f"{where} is not valid Unicode text; give it as UTF-8.") from None
    return text


def check_writable(path: Path | None) -> None:
    """Raises SsdError for a file that cannot be written; called before the work is done."""
    if path is None:
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise SsdError(
            f"the trace cannot be written to {path} ({error.strerror or one_line(error)}); choose another file."
        ) from None


@contextmanager
def server_extra(command: str) -> Iterator[None]:
    """A context for imports of what needs the extra "server". Raises SsdError, which says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in SERVER_EXTRA:
            raise
        raise SsdError(f"`{command}` needs {package}, which is not installed; pip install 'ssd-decode[server]'.") from None


@contextmanager
def loaded_engine(description: str, options: EngineOptions) -> Iterator[Engine]:
    """An engine with these options, closed after the block; a bar on stderr shows its loading."""
    with progress_bar(description, after=f"{description}: preparing the weights") as progress:
        from ssd.engine import Engine

        engine = Engine(**flat(options), progress=progress)
    with engine:
        yield engine
