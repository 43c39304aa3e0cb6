"""Making a small draft for a target, from the target alone: `distill` is the run, and a `Recipe` holds its settings."""

from ssd.distill.pipeline import distill
from ssd.distill.recipe import Recipe

__all__ = ["Recipe", "distill"]
