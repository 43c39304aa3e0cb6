"""Making a small draft for a target, from the target alone: `distill`, and the `Recipe` it follows."""

from ssd.distill.recipe import Recipe, distill

__all__ = ["Recipe", "distill"]
