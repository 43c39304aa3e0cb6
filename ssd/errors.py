"""What a user can get wrong, as one sentence.

Both errors carry a message that names the value, the limit and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations


class SsdError(ValueError):
    """The user's input is wrong."""


class CheckpointError(SsdError):
    """A model on disk cannot be used: a missing or surplus tensor, a wrong shape, a truncated file, an unsupported type."""


def one_line(error: BaseException) -> str:
    """Another library's error as part of a sentence: its message on one line, cut after 200 characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
