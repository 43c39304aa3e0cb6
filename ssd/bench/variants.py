"""The variants that a benchmark measures: every combination of the swept options, without those that mean the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssd.errors import SsdError
from ssd.fields import Option, build, flat, options_of
from ssd.models.registry import draft_named
from ssd.options import EngineOptions, SamplingParams, SpeculationOptions
from ssd.serving.mode import resolve_mode


@dataclass(frozen=True)
class Variant:
    """An engine's options and a request's parameters. name: what tells it from the other variants."""

    name: str
    options: EngineOptions
    params: SamplingParams


def variants_of(options: EngineOptions, params: SamplingParams, sweeps: Sequence[str]) -> list[Variant]:
    """The variants, in the order of the sweeps. sweeps: texts such as "lookahead=2,4".

    Where no sweep names the mode, and it is "auto", all modes that the models allow are swept first. Raises SsdError.
    """
    swept = dict(map(_parse_sweep, sweeps))
    if "mode" not in swept and options.mode == "auto":
        swept = {"mode": _modes(options)} | swept
    found: dict[tuple[EngineOptions, SamplingParams], Variant] = {}
    for values in itertools.product(*swept.values()):
        given = dict(zip(swept, values, strict=True))
        all_options = flat(options) | {name: value for name, value in given.items() if name in _ENGINE}
        sampling = replace(params, **{name: value for name, value in given.items() if name in _SAMPLING})
        meant = _meant(build(EngineOptions, all_options))
        resolve_mode(meant, draft_named(meant.draft, meant.target) is not None)
        name = _name({name: value for name, value in given.items() if name not in _unused(meant)})
        found.setdefault((meant, sampling), Variant(name, meant, sampling))
    return list(found.values())


_SHORT = {"lookahead": "K", "budget": "B", "saguaro_c": "C", "saguaro_f": "F", "temperature": "t", "max_batch": "batch"}
_ENGINE, _SAMPLING = options_of(EngineOptions), options_of(SamplingParams)


def _parse_sweep(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    known: dict[str, Option] = {**_SAMPLING, **_ENGINE}
    if not equals or not values or name not in known or name in ("target", "pace", "stop"):
        raise SsdError(f"the sweep is {text!r}; give an option and its values, such as 'lookahead=2,4' or 'weights=bf16,int8'.")
    each = known[name]
    is_list = each.metavar is not None and "," in each.metavar and re.search(r"[\d/]", values)
    separator = "/" if is_list else ","  # a value such as tree=3,2 has commas itself
    return name, [_value(each, value.strip(), text) for value in values.split(separator)]


def _value(option: Option, text: str, sweep: str) -> Any:
    if option.parse is not None:
        return option.parse(option.flag, text)
    if option.kind is bool:
        if text not in ("true", "false"):
            raise SsdError(f"the sweep is {sweep!r}; the values of {option.name} are true and false.")
        return text == "true"
    try:
        return option.kind(text)
    except ValueError:
        raise SsdError(f"the sweep is {sweep!r}, and {text!r} is no number; mend it.") from None


def _modes(options: EngineOptions) -> list[str]:
    """The modes that these models can run in. A tree is for "sd" only."""
    draft = draft_named(options.draft, options.target)
    if draft is None:
        return ["ar"]
    only_sd = draft == "ngram" or options.speculation_options.tree is not None
    return ["ar", "sd"] if only_sd else ["ar", "sd", "ssd"]


def _unused(options: EngineOptions) -> set[str]:
    """The options that the mode does not use."""
    speculation = options.speculation_options
    if options.mode == "ar":
        return {"draft", "draft_device", "draft_sms", "draft_threads", *options_of(SpeculationOptions)}
    if options.mode == "sd":
        from_budget = set() if speculation.saguaro_c < 1 and speculation.saguaro_f is None else {"budget"}
        return {"draft_threads", "fan_out", "fallback", *from_budget}
    return set()


def _meant(options: EngineOptions) -> EngineOptions:
    """The options without those that the mode does not use, so that equal variants are equal."""
    if options.mode == "ar":
        return options.autoregressive()
    unused = {name: _ENGINE[name].default for name in _unused(options)}
    return build(EngineOptions, flat(options) | unused)


def _name(values: dict[str, Any]) -> str:
    """From the values of the swept options."""
    parts = []
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts.append(text if name == "mode" else f"{_SHORT.get(name, name)}={text}")
    return " ".join(parts) or "as given"
