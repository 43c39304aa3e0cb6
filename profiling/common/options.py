"""Flags of the scripts that are options of ssd: made from its own list of them, so that names, types and help agree."""

from __future__ import annotations

import argparse
from typing import Any

from ssd.fields import options_of
from ssd.options import EngineOptions, SamplingParams


def add_flags(parser: argparse.ArgumentParser, *names: str, **defaults: Any) -> None:
    """Add the flags of these options of `Engine` and `SamplingParams`. defaults: defaults that differ in this script."""
    known = options_of(SamplingParams) | options_of(EngineOptions)
    for name in (*names, *(name for name in defaults if name not in names)):
        each = known[name]
        help = each.help.replace("%", "%%")
        if each.kind is bool:
            parser.add_argument(each.flag, action="store_true", help=help)
        else:
            parser.add_argument(each.flag, type=each.kind, default=defaults.get(name, each.default), help=help)
