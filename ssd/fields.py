"""An option is a dataclass field with a help text, limits and a place on the command line.

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

Parse = Callable[[str, str], Any]  # from a flag and the text given to it


@dataclass(frozen=True)
class Option:
    """One option, as its field declares it.

    help: a noun phrase that stands without the option's name. panel, short, metavar: the heading, the one-letter flag and the name of
    the value in the command's help. limits: the least and the largest value. parse: from the command line's text to a value, for
    values that are not one number, string or switch; raises SsdError.
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
        """Whether the value is a tuple of strings: on the command line, the flag is given once for each."""
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
    """A dataclass field that is an `Option`; numbers of an int field are whole, and a Literal lists its choices."""
    about = {"help": help, "panel": panel, "short": short, "metavar": metavar, "limits": limits, "parse": parse}
    return field(default=default, metadata=about)


def own_options(cls: Any) -> Mapping[str, Option]:
    """The options that a dataclass declares itself, by name."""
    return _own_options(cls)


@cache
def _own_options(cls: Any) -> Mapping[str, Option]:
    types = get_type_hints(cls)
    return {f.name: Option(f.name, f.default, types[f.name], **f.metadata) for f in fields(cls) if "help" in f.metadata}


def parts(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that hold options of their own, with their dataclasses."""
    types = get_type_hints(cls)
    names = [f.name for f in fields(cls) if "help" not in f.metadata]
    return {name: types[name] for name in names if is_dataclass(types[name])}


def options_of(cls: Any) -> dict[str, Option]:
    """All options of a dataclass by name, those of its parts among them."""
    found = dict(own_options(cls))
    for part in parts(cls).values():
        found |= options_of(part)
    return found


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of options from values by name, its parts built from theirs. Raises SsdError for an unknown name."""
    known = options_of(cls)
    check_known(values, known)
    inner: dict[str, Any] = {name: build(part, _some(values, options_of(part))) for name, part in parts(cls).items()}
    return cls(**_some(values, own_options(cls)), **inner)


def flat(options: Any) -> dict[str, Any]:
    """The values of all options by name, those of the parts among them: the inverse of `build`."""
    found = {name: getattr(options, name) for name in own_options(type(options))}
    for name in parts(type(options)):
        found |= flat(getattr(options, name))
    return found


def changed(options: Any) -> list[str]:
    """The names of the options that do not have their default."""
    known = options_of(type(options))
    return [name for name, value in flat(options).items() if value != known[name].default]


def check(options: Any) -> None:
    """Raise SsdError where an option that the dataclass declares itself is outside its limits or choices."""
    for name, each in own_options(type(options)).items():
        each.check(getattr(options, name))


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
    for each in options:
        default = "" if each.name in required else f" ({each.default!r})"
        lines.append(f"{each.name}{default}: {each.help}")
    return "\n".join(lines)


def documented(cls: type[T]) -> type[T]:
    """A class decorator that lists a dataclass's options in its docstring."""
    cls.__doc__ = f"{cleandoc(cls.__doc__ or '')}\n\n{describe(own_options(cls).values())}\n"
    return cls


def numbers(what: str, example: str, *, number: type = int, count: int | None = None, or_name: bool = False) -> Parse:
    """A parser of numbers with commas between them. count: how many there must be; or_name: text without a digit or comma passes."""

    def parse(flag: str, text: str) -> Any:
        if or_name and not re.search(r"[\d,]", text):
            return text
        try:
            found = tuple(number(each) for each in text.split(","))
        except ValueError:
            found = ()
        if not found or count not in (None, len(found)):
            raise SsdError(f"{flag} is {text!r}; give {what} with commas between them: {example}.")
        return found

    return parse


def _some(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
