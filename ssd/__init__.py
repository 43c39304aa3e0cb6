"""Speculative speculative decoding. The whole public face: `decode`, `Engine`, `AsyncEngine`, `SamplingParams`, `Completion`.

Each name is loaded when it is first used, and with it torch and the extension (ssd/native.py checks that they fit).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd.engine import Engine, decode
    from ssd.options import SamplingParams
    from ssd.requests import Completion
    from ssd.server.async_engine import AsyncEngine

__version__ = "0.1.0"
__all__ = ["AsyncEngine", "Completion", "Engine", "SamplingParams", "decode"]

_HOME = {
    "AsyncEngine": "ssd.server.async_engine",
    "Completion": "ssd.requests",
    "Engine": "ssd.engine",
    "SamplingParams": "ssd.options",
    "decode": "ssd.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ssd' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
