"""What a figure needs to say of the machine it was made on, and the machine's floor: how fast it reads memory."""

from __future__ import annotations

import datetime
import mmap
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ssd.native import cpu_isa

GIB = 1 << 30


def describe() -> dict[str, Any]:
    """Device, versions, date and commit."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": _cpu_name(),
        "cores": os.cpu_count(),
        "instruction_set": cpu_isa(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_bandwidth(threads: int, size: int = GIB, runs: int = 7) -> float:
    """Bytes/s: the better of a copy, both ways counted, and a reduction, over `size` bytes on large pages with `threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source, target = _large_pages(size), _large_pages(size)
        rates = []
        for _ in range(runs):
            rates.append((2 * size / _seconds(lambda: target.copy_(source)), size / _seconds(lambda: source.sum())))
        return max(median(copy for copy, _ in rates), median(reduction for _, reduction in rates))
    finally:
        torch.set_num_threads(before)


def _large_pages(size: int) -> torch.Tensor:
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"model name\s*:\s*(.*)", info)
    return match[1].strip() if match else platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
