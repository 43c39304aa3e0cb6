"""The mode of an engine."""

from __future__ import annotations

from typing import Literal

from ssd.errors import SsdError
from ssd.options import EngineOptions

Mode = Literal["ar", "sd", "ssd"]


def resolve_mode(options: EngineOptions, has_draft: bool) -> Mode:
    """The mode to run in: "auto" becomes "sd" with a draft and "ar" without one.

    Raises SsdError for "sd" or "ssd" without a draft, and for a draft or tree that the mode cannot use.
    """
    mode, draft, target, tree = options.mode, options.draft, options.target, options.speculation_options.tree
    if mode == "ssd" and draft == "ngram":
        raise SsdError(
            "mode='ssd' needs a draft model, and draft='ngram' is none; use mode='sd', or fallback='ngram' with a model."
        )
    if tree is not None and (mode in ("ar", "ssd") or draft == "ngram"):
        setting = f"mode={mode!r}" if draft != "ngram" else "draft='ngram'"
        raise SsdError(f"tree does not work with {setting}; use mode='sd' and a draft model, or leave tree out.")
    if tree is not None and mode == "auto" and not has_draft:
        raise SsdError(
            f"tree needs a draft and {target!r} has none; name one with draft=, for example 'self:2', or leave tree out."
        )
    if mode == "auto":
        return "sd" if has_draft else "ar"
    if mode != "ar" and not has_draft:
        raise SsdError(
            f"mode={mode!r} needs a draft and {target!r} has none; name one with draft=, for example 'self:2', or use mode='ar'."
        )
    return mode
