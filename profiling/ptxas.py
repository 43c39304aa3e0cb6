"""Registers, spills and stack of each compiled kernel, by architecture.

    python profiling/ptxas.py [--archs 80,90a]

Compiles every csrc/cuda/*.cu by itself, as the build does, and reads the report of ptxas. Needs only nvcc. The result is one
JSON file; profiling/tables.py makes docs/kernels.md from the newest.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.results import PTXAS, write_result

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xptxas", "-v", "-Icsrc", "-c", "-o", "/dev/null"]

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores, (?P<spill_loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def readable(mangled: list[str]) -> list[str]:
    """Kernels' names without namespaces and without their argument, which is one parameter struct. Lambdas of launch() get
    their kernel's name."""
    if not mangled:
        return []
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = []
    for name in done.stdout.splitlines():
        if launched := re.search(r"::launch<&\(?(.*?), ssd::cuda::\w+>\(dim3", name):
            name = launched[1].removesuffix(")") if launched[1].count(")") > launched[1].count("(") else launched[1]
        for noise in ("ssd::cuda::", "(anonymous namespace)::", "void "):
            name = name.replace(noise, "")
        names.append(re.sub(r"\(\w*\)$", "", name).replace("> >", ">>"))
    return names


def compiled(source: Path, arch: str) -> tuple[list[dict[str, Any]], float]:
    """(ptxas's figures for each kernel, seconds to compile)."""
    start = time.perf_counter()
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    done = subprocess.run(["nvcc", target, *FLAGS, str(source)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"ptxas.py: nvcc does not compile {source.name} for sm_{arch}:\n{done.stdout}{done.stderr}")
    seconds = time.perf_counter() - start
    found = [match.groupdict() for match in ENTRY.finditer(done.stderr + done.stdout)]
    names = readable([entry["kernel"] for entry in found])
    figures = ("registers", "stack", "spill_stores", "spill_loads")
    return [
        {"file": source.name, "kernel": name, "arch": f"sm_{arch}"} | {figure: int(entry[figure]) for figure in figures}
        for name, entry in zip(names, found, strict=True)
    ], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="80,90a", help="architectures, separated by commas")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("SKIPPED: ptxas.py; there is no nvcc here.")
    release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    kernels: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        for arch in args.archs.split(","):
            entries, took = compiled(source, arch)
            kernels += entries
            seconds.setdefault(source.name, {})[f"sm_{arch}"] = round(took, 1)
            print(f"{source.name:28} sm_{arch:4} {len(entries):3} kernels {took:5.1f} s", flush=True)
    result = {
        "what": PTXAS.what,
        "date": datetime.date.today().isoformat(),
        "nvcc": release.partition("release ")[2].partition(",")[0],
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip() or None,
        "seconds": seconds,
        PTXAS.figures: kernels,
    }
    print(write_result(result))


if __name__ == "__main__":
    main()
