"""Making a small draft for a target, from the target alone: `distill` is the run, and a `Recipe` holds its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssd.distill.recipe import Recipe

if TYPE_CHECKING:
    from ssd.distill.pipeline import distill

__all__ = ["Recipe", "distill"]


def __getattr__(name: str) -> Any:
    if name != "distill":
        raise AttributeError(f"module 'ssd.distill' has no attribute {name!r}")
    from ssd.distill.pipeline import distill  # late, because it loads torch

    return distill
