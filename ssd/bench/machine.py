"""The machine that a figure was made on, and how fast it reads memory: the floor of a memory-bound pass."""

from __future__ import annotations

import datetime
import mmap
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ssd import __version__
from ssd.native import cpu_isa

GIB = 1 << 30


def describe() -> dict[str, Any]:
    """The CPU, versions, date and commit, as a result records them."""
    return {
        "date": datetime.date.today().isoformat(),
        "ssd": __version__,
        "device": _cpu_name(),
        "cores": os.cpu_count(),
        "instruction_set": cpu_isa(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def read_bandwidth(threads: int, size: int = GIB, runs: int = 7) -> float:
    """Bytes/s that `threads` threads read: the faster of a copy (reads and writes counted) and a sum, over `size` bytes on
    large pages."""
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
    """The commit of the sources: $SSD_COMMIT, or from git; None without either, as in an installed package."""
    if given := os.environ.get("SSD_COMMIT"):
        return given
    sources = Path(__file__).parents[2]
    if not (sources / ".git").exists():
        return None
    command = ["git", "-C", str(sources), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


# A GPU ------------------------------------------------------------------------------------------------------------------------


def describe_gpu() -> dict[str, Any]:
    """The result of `describe`, with the current CUDA device as the device and the CPU as the host."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return describe() | {
        "device": properties.name,
        "gpus": [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())],
        "host": _cpu_name(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "nominal_bytes_per_s": _nominal_bandwidth(properties),
        "cuda": torch.version.cuda,
    }


def gpu_read_bandwidth(size: int = 2 * GIB, runs: int = 20) -> float:
    """Bytes/s that the GPU reads: the faster of a device copy (reads and writes counted) and a sum, over `size` bytes."""
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    works: list[tuple[int, Callable[[], object]]] = [(2 * size, lambda: target.copy_(source)), (size, lambda: source.sum())]
    rates = []
    for moved, work in works:
        work()
        rates.append(moved / median(gpu_seconds(work) for _ in range(runs)))
    return max(rates)


def gpu_seconds(work: Callable[[], object]) -> float:
    """GPU time of the work that `work` enqueues on the current stream, measured with events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _nominal_bandwidth(properties: Any) -> float | None:
    """Bytes/s computed from the memory's clock and bus width; None where torch does not report them."""
    clock_khz, width_bits = getattr(properties, "memory_clock_rate", None), getattr(properties, "memory_bus_width", None)
    return 2 * clock_khz * 1e3 * width_bits / 8 if clock_khz and width_bits else None
