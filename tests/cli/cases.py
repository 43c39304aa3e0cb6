"""Types that the command line's tests share, imported as `cli.cases`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]
Refusal = Callable[..., str]
