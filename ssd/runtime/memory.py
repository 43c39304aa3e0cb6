"""How much memory this process can still take."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be taken without swapping: Linux's MemAvailable (what is free and what the page cache would give back), or what
    a container's limit leaves if that is less."""
    meminfo = _read(Path("/proc/meminfo"))
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo)
    available = int(match[1]) * 1024 if match else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    return min(available, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else available


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
