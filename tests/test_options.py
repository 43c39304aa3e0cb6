"""Options are declared once: in ssd/options.py, ssd/distill/recipe.py and ssd/server/options.py.

Signatures, help texts and checks follow.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ssd
from ssd.distill import Recipe
from ssd.errors import SsdError
from ssd.fields import Option, changed, flat, options_of, own_options
from ssd.options import EngineOptions, SamplingParams, SpeculationOptions, engine_signature, options_doc
from ssd.server.options import ServerOptions

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (EngineOptions, SpeculationOptions, SamplingParams, Recipe, ServerOptions)
ALL = [pytest.param(each, id=f"{cls.__name__}.{each.name}") for cls in CLASSES for each in own_options(cls).values()]
OP_SCHEMAS = ROOT / "ssd" / "ops.py"  # an op's defaults are those of its schema, and no option's

# Words that begin a sentence about an option, and not its name.
NO_NOUNS = {
    *("of", "at", "in", "on", "for", "to", "with", "where", "whether", "what", "how", "if", "when", "it", "is", "be"),
    *("keep", "use", "make", "run", "go", "end", "stop", "print", "write", "show", "decode"),
}


def annotations() -> dict[str, set[str]]:
    """The types of every option as its dataclass spells them, by name."""
    found: dict[str, set[str]] = {}
    for file in ("options.py", "distill/recipe.py", "server/options.py"):
        for cls in ast.walk(ast.parse((ROOT / "ssd" / file).read_text(encoding="utf-8"))):
            if isinstance(cls, ast.ClassDef) and cls.name in {each.__name__ for each in CLASSES}:
                for field in cls.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        found.setdefault(field.target.id, set()).add(ast.unparse(field.annotation))
    return found


def defaults(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[tuple[ast.arg, ast.expr]]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    last = positional[len(positional) - len(arguments.defaults) :]
    keywords = [
        (name, value) for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value is not None
    ]
    return [*zip(last, arguments.defaults, strict=True), *keywords]


def is_literal(value: ast.expr) -> bool:
    try:
        return ast.literal_eval(value) is not ...
    except ValueError:
        return False


def test_no_signature_repeats_an_option_and_its_default() -> None:
    """A parameter that has an option's name and type takes its default from the dataclass, or has none."""
    types, repeated = annotations(), []
    for folder in ("ssd", "profiling"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file == OP_SCHEMAS:
                continue
            for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                    for name, value in defaults(function):
                        of_this_type = name.annotation is None or ast.unparse(name.annotation) in types.get(name.arg, ())
                        if name.arg in types and of_this_type and is_literal(value):
                            repeated.append(f"{file.relative_to(ROOT)}:{function.lineno}: {name.arg}={ast.unparse(value)}")
    assert repeated == []


def test_every_option_is_a_field_of_one_dataclass() -> None:
    """A request has a seed of its own; nothing else is said twice."""
    names = [name for cls in (EngineOptions, SpeculationOptions, SamplingParams) for name in own_options(cls)]
    assert sorted(name for name in names if names.count(name) > 1) == ["seed", "seed"]


def test_the_engines_signature_has_every_option_with_its_default() -> None:
    parameters = inspect.signature(ssd.Engine).parameters
    assert [*parameters] == [*options_of(EngineOptions), "progress"]
    for name, each in options_of(EngineOptions).items():
        assert parameters[name].default == (inspect.Parameter.empty if name == "target" else each.default)
    assert inspect.signature(ssd.Engine) == engine_signature()


@pytest.mark.parametrize("each", options_of(EngineOptions).values(), ids=lambda each: each.name)
def test_the_engines_help_has_every_option_with_its_default(each: Option) -> None:
    default = "" if each.name == "target" else f" ({each.default!r})"
    line = f"{each.name}{default}: {each.help}"
    assert line in options_doc().splitlines()
    assert line in (inspect.getdoc(ssd.Engine) or "").splitlines()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_dataclasses_help_has_its_options(cls: type) -> None:
    assert all(f"{each.name} ({each.default!r}): {each.help}" in (cls.__doc__ or "") for each in own_options(cls).values())


@pytest.mark.parametrize("each", ALL)
def test_a_help_text_is_a_noun_phrase_with_a_full_stop(each: Option) -> None:
    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*( \.gguf[^.]*)?\.", each.help), each.help
    assert each.help.split()[0].lower().rstrip(",:") not in NO_NOUNS
    assert "  " not in each.help


@pytest.mark.parametrize("cls", CLASSES)
def test_the_defaults_are_within_the_limits(cls: Any) -> None:
    assert changed(cls()) == []


@pytest.mark.parametrize("each", [param for param in ALL if param.values[0].limits is not None])
def test_the_limits_are_checked(each: Option) -> None:
    (cls,) = (cls for cls in CLASSES if own_options(cls).get(each.name) is each)
    low, high = each.limits or (0, 0)
    for value in (low - 1, high * 2 + 1, "1", True):
        with pytest.raises(SsdError, match=f"^{each.name} is .*; it must be a .*number .*{re.escape(str(low))}.*\\.$"):
            replace(cls(), **{each.name: value})


def test_options_come_back_from_keyword_arguments() -> None:
    options = EngineOptions.of("model", mode="sd", tree=(3, 1), max_batch=2, seed=7)
    assert (options.target, options.mode, options.max_batch, options.seed) == ("model", "sd", 2, 7)
    assert options.speculation_options == SpeculationOptions(tree=(3, 1))
    assert changed(options) == ["target", "mode", "max_batch", "seed", "lookahead", "tree"]
    assert EngineOptions.of(**flat(options)) == options


@pytest.mark.parametrize("make", [ssd.Engine, EngineOptions.of])
def test_an_unknown_option_is_refused_in_one_sentence(make: Any) -> None:
    with pytest.raises(SsdError, match=r"^the option 'lookahed' is not known; it can be target, [^.]*lookahead[^.]*\.$"):
        make("model", lookahed=4)
    with pytest.raises(SsdError, match=r"^the option 'lookahed' is not known; it can be temperature, [^.]*lookahead[^.]*\.$"):
        ssd.decode([1], "model", lookahed=4)
