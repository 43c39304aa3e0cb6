"""What a figure needs to say of the machine it was made on, and the machine's floor: how fast it reads memory."""

from __future__ import annotations

import datetime
import json
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

from ssd.native import cpu_isa

GIB = 1 << 30
RESULTS = Path(__file__).parent / "results"


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


def write_result(what: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a result with its machine into the folder, named date-device-what.json, and print where."""
    info = result["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{info['date']}-{slug(info['device'])}-{what}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


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
    """The commit of the sources, from git, or from $SSD_COMMIT where there is no git or no history; None without either."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        described = ""
    return described or os.environ.get("SSD_COMMIT")


# A GPU -------------------------------------------------------------------------------------------------------------------------


def describe_gpu() -> dict[str, Any]:
    """What `describe` says, with the current CUDA device for the CPU."""
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
    """Bytes/s: the better of a device copy, both ways counted, and a reduction, over `size` bytes."""
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    works: list[tuple[int, Callable[[], object]]] = [(2 * size, lambda: target.copy_(source)), (size, lambda: source.sum())]
    rates = []
    for moved, work in works:
        work()
        rates.append(moved / median(gpu_seconds(work) for _ in range(runs)))
    return max(rates)


def gpu_seconds(work: Callable[[], object]) -> float:
    """Of what `work` puts on the current stream, by events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _nominal_bandwidth(properties: Any) -> float | None:
    """What the memory's clock and width come to; None where torch does not say."""
    clock_khz, width_bits = getattr(properties, "memory_clock_rate", None), getattr(properties, "memory_bus_width", None)
    return 2 * clock_khz * 1e3 * width_bits / 8 if clock_khz and width_bits else None
