"""The CPU cores that this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Their number: those of the machine, or fewer where the process is bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
