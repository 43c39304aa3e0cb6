"""Errors that a user can cause.

A message is one sentence with the value, the limit and the remedy. The command line prints it without a traceback.
"""

from __future__ import annotations


class SsdError(ValueError):
    """The user's input is wrong."""


class CheckpointError(SsdError):
    """A model on disk cannot be used: a missing or surplus tensor, a wrong shape, a truncated file, an unsupported type."""


def one_line(error: BaseException) -> str:
    """Another library's error message as part of a sentence: on one line, at most 200 characters, without a full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
