"""An option is a dataclass field with a help text, limits, and a flag on the command line.

Checks, help texts, signatures and command-line flags are derived from the fields, so that an option is declared once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from inspect import cleandoc
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ssd.errors import SsdError

T = TypeVar("T")

Parse = Callable[[str, str], Any]  # from the flag and its text to the value


@dataclass(frozen=True)
class Option:
    """One option, as its field declares it.

    help: a noun phrase that stands without the option's name. panel, short, metavar: the heading, the one-letter flag and the
    name of the value in the command's help. limits: the least and the largest value. parse: turns the text on the command line
    into a value; None for one number, string or switch. It raises SsdError for a bad text.
    """

    name: str
    default: Any
    type: Any
    help: str
    panel: str
    short: str | None
    metavar: str | None
    limits: tuple[float, float] | None
    parse: Parse | None

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def kind(self) -> type:
        """The type of one value on the command line: bool, int, float or str."""
        candidates = {self.type, *get_args(self.type)}
        return next((kind for kind in (bool, int, float) if self.parse is None and kind in candidates), str)

    @property
    def repeats(self) -> bool:
        """Whether the value is a tuple of strings. On the command line, the flag is repeated for each string."""
        return bool(self.type == tuple[str, ...])

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values of an option whose type is a Literal, else ()."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def check(self, value: Any) -> None:
        """Raise SsdError for a value outside the limits or choices. None is allowed where it is the default."""
        if value is None and self.default is None:
            return
        if self.choices:
            one_of(self.name, value, self.choices)
        if self.limits is not None:
            within(self.name, value, *self.limits, whole=self.kind is int)


def option(
    default: Any,
    *,
    help: str,
    panel: str,
    short: str | None = None,
    metavar: str | None = None,
    limits: tuple[float, float] | None = None,
    parse: Parse | None = None,
) -> Any:
    """A dataclass field that is an `Option`. An int field takes whole numbers, and a Literal lists the choices."""
    metadata = {"help": help, "panel": panel, "short": short, "metavar": metavar, "limits": limits, "parse": parse}
    return field(default=default, metadata=metadata)


def own_options(cls: Any) -> Mapping[str, Option]:
    """The options that a dataclass declares itself, without those of its parts, by name."""
    return _own_options(cls)


@cache
def _own_options(cls: Any) -> Mapping[str, Option]:
    types = get_type_hints(cls)
    return {f.name: Option(f.name, f.default, types[f.name], **f.metadata) for f in fields(cls) if "help" in f.metadata}


def parts(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that are dataclasses of options too: from field name to dataclass."""
    types = get_type_hints(cls)
    names = [f.name for f in fields(cls) if "help" not in f.metadata]
    return {name: types[name] for name in names if is_dataclass(types[name])}


def options_of(cls: Any) -> dict[str, Option]:
    """All options of a dataclass and of its parts, by name."""
    options = dict(own_options(cls))
    for part in parts(cls).values():
        options |= options_of(part)
    return options


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass of options and its parts from values by name. Raises SsdError for an unknown name."""
    known = options_of(cls)
    check_known(values, known)
    part_values: dict[str, Any] = {name: build(part, _select(values, options_of(part))) for name, part in parts(cls).items()}
    return cls(**_select(values, own_options(cls)), **part_values)


def flat(options: Any) -> dict[str, Any]:
    """The values of all options, with those of the parts, by name: the inverse of `build`."""
    values = {name: getattr(options, name) for name in own_options(type(options))}
    for name in parts(type(options)):
        values |= flat(getattr(options, name))
    return values


def changed(options: Any) -> list[str]:
    """The names of the options that do not have their default."""
    known = options_of(type(options))
    return [name for name, value in flat(options).items() if value != known[name].default]


def check(options: Any) -> None:
    """Raise SsdError if an option that the dataclass declares itself is outside its limits or choices."""
    for name, declared in own_options(type(options)).items():
        declared.check(getattr(options, name))


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise SsdError(f"the option {name!r} is not known; it can be {', '.join(known)}.")


def one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        *most, last = map(repr, allowed)
        raise SsdError(f"{name} is {value!r}; it can be {', '.join(most)} or {last}.")


def within(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    """Raise SsdError unless the value is a number from low to high."""
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        limit = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise SsdError(f"{name} is {value!r}; it must be {kind} {limit}.")


def describe(options: Iterable[Option], required: Collection[str] = ()) -> str:
    """A line for each option: "name (default): help". required: names of options whose default does not apply."""
    lines = []
    for listed in options:
        default = "" if listed.name in required else f" ({listed.default!r})"
        lines.append(f"{listed.name}{default}: {listed.help}")
    return "\n".join(lines)


def documented(cls: type[T]) -> type[T]:
    """A class decorator that lists a dataclass's options in its docstring."""
    cls.__doc__ = f"{cleandoc(cls.__doc__ or '')}\n\n{describe(own_options(cls).values())}\n"
    return cls


def numbers(contents: str, example: str, *, number: type = int, count: int | None = None, or_name: bool = False) -> Parse:
    """A parser of numbers with commas between them.

    contents: noun phrase for the numbers. example: a valid text. count: the required number of numbers. or_name: whether text
    without a digit or comma passes.
    """

    def parse(flag: str, text: str) -> Any:
        if or_name and not re.search(r"[\d,]", text):
            return text
        try:
            values = tuple(number(word) for word in text.split(","))
        except ValueError:
            values = ()
        if not values or count not in (None, len(values)):
            raise SsdError(f"{flag} is {text!r}; give {contents} with commas between them: {example}.")
        return values

    return parse


def _select(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
