"""docs/kernels.md: registers, spills and block sizes of the compiled kernels."""

from __future__ import annotations

import re

from common.results import EMULATOR_TESTS, PTXAS, Row, newest

from pages.markdown import figure, table

HEAD = """# Kernels

Made by `python profiling/tables.py` from the results of `python profiling/ptxas.py`: registers and spilled bytes of each
kernel in `csrc/cuda`, as compiled. All shared memory is dynamic, at most 99 KB a block. Threads and shared bytes are those of
the largest block that the tests launched on the emulator.

"""


def page(results: list[Row]) -> str:
    result = newest(results, PTXAS.what)
    if result is None:
        return HEAD + "Nothing was compiled yet.\n"
    archs = sorted({entry["arch"] for entry in result[PTXAS.figures]}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    by_kernel: dict[tuple[str, str], dict[str, Row]] = {}
    for entry in result[PTXAS.figures]:
        by_kernel.setdefault((entry["file"], entry["kernel"]), {})[entry["arch"]] = entry
    blocks = (newest(results, EMULATOR_TESTS.what) or {}).get("blocks", {})
    lines = [["file", "kernel", "threads", "shared bytes", *(f"{arch}: registers, spilled bytes" for arch in archs)]]
    for (file, kernel), by_arch in by_kernel.items():
        block = [str(blocks.get(kernel, {}).get(name, "–")) for name in ("threads", "shared_bytes")]
        lines.append([file, f"`{kernel}`", *block, *(_registers(by_arch.get(arch)) for arch in archs)])
    seconds = [["file", *archs]]
    seconds += [[file, *(figure(took.get(arch)) for arch in archs)] for file, took in result["seconds"].items()]
    made = f"nvcc {result['nvcc']}; commit {result['commit']}; {result['date']}.\n\n"
    return HEAD + made + table(lines) + "\n\nSeconds to compile each file:\n\n" + table(seconds) + "\n"


def _registers(entry: Row | None) -> str:
    return f"{entry['registers']}, {entry['spill_stores'] + entry['spill_loads']}" if entry else "–"
