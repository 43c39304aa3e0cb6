"""The memory that this process can still allocate."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ssd.errors import SsdError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """The bytes that can be allocated without swapping: Linux's MemAvailable, or less if a container's limit leaves less.

    Page cache that can be reclaimed counts as available, so a checkpoint that was just read is not counted as memory in use.
    """
    kib = _number(_MEMINFO, r"MemAvailable:\s+(\d+) kB")
    available = kib * 1024 if kib is not None else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _number(_CGROUP / "memory.max", r"^(\d+)$")
    used = _number(_CGROUP / "memory.current", r"^(\d+)$")
    if limit is None or used is None:
        return available
    cache = _number(_CGROUP / "memory.stat", r"(?m)^inactive_file (\d+)$") or 0
    return min(available, max(0, limit - used + cache))


@contextmanager
def must_fit(contents: str, remedy: str) -> Iterator[None]:
    """Raise SsdError, in one sentence, if a GPU has no room for the allocations of the block.

    contents: noun phrase for the allocated data. remedy: imperative phrase.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise SsdError(f"there is no room in the GPU's memory for {contents}; {remedy}.") from None


def _number(path: Path, pattern: str) -> int | None:
    match = re.search(pattern, _read(path).strip())
    return int(match[1]) if match else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
