"""How much memory the machine can still give."""

from __future__ import annotations

import os
import re
from pathlib import Path


def available_memory() -> int:
    """Bytes that can be taken without swapping: Linux's MemAvailable (what is free and what the page cache would give back)."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
