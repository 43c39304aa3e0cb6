"""Makes docs/benchmarks.md, docs/gpu-status.md and docs/kernels.md from profiling/results/*.json: no figure in them is typed.

python profiling/tables.py          writes the pages
python profiling/tables.py --check  fails if a page is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent

Row = dict[str, Any]


def figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is its head."""
    head, *body = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def made_on(machine: Row, *more: str) -> str:
    return "; ".join([machine["device"], *more, f"torch {machine['torch']}", f"commit {machine['commit']}", machine["date"]])


# docs/benchmarks.md --------------------------------------------------------------------------------------------------------------

BENCHMARKS = """# Benchmarks

Made by `python profiling/tables.py` from the files in `profiling/results`, each written by the benchmark itself
(`python profiling/decode.py --help`). Decode speed excludes the prefill. Modes and peers took turns in one run. The floor of a
target pass is one read of every weight at the bandwidth measured beside it.
"""

COLUMNS = [
    ("tokens/s, median", lambda m: figure(m["decode_tokens_per_s"]["median"])),
    ("mean, 95 %", lambda m: " to ".join(figure(end) for end in m["decode_tokens_per_s"]["mean_95"])),
    ("over ar", lambda m: figure(m["over_ar"], 2)),
    ("tokens a round", lambda m: figure(m["tokens_per_round"], 2)),
    ("hit rate", lambda m: figure(m["hit_rate"], 2)),
    ("T_v ms", lambda m: figure(m["t_verify_ms"])),
    ("of the floor", lambda m: f"{m['verify_fraction_of_floor']:.0%}"),
    ("T_d ms", lambda m: figure(m["t_draft_ms"])),
    ("hidden ms", lambda m: figure(m["hidden_draft_ms"])),
    ("T_b ms", lambda m: figure(m["t_fallback_ms"])),
]


def decode_table(result: Row) -> str:
    base = next(iter(result["modes"].values()))["decode_tokens_per_s"]["median"]
    lines = [["", "threads", *(title for title, _ in COLUMNS)]]
    for name, mode in result["modes"].items():
        row = mode | {"over_ar": mode["decode_tokens_per_s"]["median"] / base}
        lines.append([name, str(result["threads"][name]), *(show(row) for _, show in COLUMNS)])
    for name, peer in result["peers"].items():
        rate = median(peer["decode_tokens_per_s"])
        known = [figure(rate), "–", figure(rate / base, 2)]
        lines.append([name, str(peer["first"].get("threads", "–")), *known, *["–"] * (len(COLUMNS) - len(known))])
    return markdown(lines)


def decode_section(result: Row) -> str:
    machine, settings = result["machine"], result["settings"]
    made_with = [
        f"{settings['limit']} prompts of {settings['prompts']} (sha256 {settings['prompts_sha256'][:12]})",
        f"{settings['max_new_tokens']} tokens",
        f"temperature {settings['temperature']}",
        f"K = {settings['lookahead']}, B = {settings['budget']}",
        f"dtype {settings['dtype']}",
        f"batch 1, {settings['runs']} runs",
    ]
    made = made_on({**machine, "device": f"{machine['device']}, {machine['cores']} cores, {machine['instruction_set']}"})
    lines = [f"\n## {result['what']}: {settings['target']}, draft {settings['draft']}\n", f"{made}.  "]
    lines += [", ".join(made_with) + ".\n", decode_table(result)]
    if result["identical"] is not None:
        lines.append(f"\nTokens of all modes identical: {'yes' if all(result['identical'].values()) else 'NO'}.")
    return "\n".join(lines) + "\n"


def benchmarks(results: list[Row]) -> str:
    return BENCHMARKS + "".join(decode_section(result) for result in results if "modes" in result)


# docs/gpu-status.md --------------------------------------------------------------------------------------------------------------

GPU_STATUS = """# GPU status

Made by `python profiling/tables.py` from the results that `make gpu-check` writes on a machine with a GPU: the tests of `tests/ops`
and `tests/gpu` that called an op, and the kernels' times beside their floors. An op without results was **not yet run** on a
GPU; that it compiles (`make kernels`) and passes its tests on the CPU's emulator (`make test-emulator`) does not change that.

The engine refuses any device but the CPU: rounds on CUDA are not written. `ssd doctor` shows which ops the installed extension
has for CUDA, and whether torch sees a GPU.

"""

NOT_YET_RUN = "not yet run"
KERNEL_OF = {"add_rms_norm": "rms_norm"}  # other ops are named like their kernel


def op_names() -> list[str]:
    return re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8"))


def newest(results: list[Row], what: str) -> Row | None:
    """Of the results of one kind, by date; files of one day come in the order of their names."""
    return max((r for r in results if r.get("what") == what), key=lambda r: str((r.get("machine") or r)["date"]), default=None)


def status_row(op: str, tests: Row | None, kernels: Row | None) -> list[str]:
    outcomes = tests["ops"].get(op) if tests else None
    timed = [row for row in kernels["kernels"] if row["kernel"] == KERNEL_OF.get(op, op)] if kernels else []
    machine = tests["machine"] if tests and outcomes else kernels["machine"] if kernels and timed else None
    if machine is None:
        return [f"`{op}`", NOT_YET_RUN, "–", "–", NOT_YET_RUN, NOT_YET_RUN]
    said = NOT_YET_RUN
    if outcomes:
        said = f"{outcomes['passed']} passed" + (f", **{outcomes['failed']} failed**" if outcomes["failed"] else "")
    shares = sorted(row["fraction_of_floor"] for row in timed)
    share = f"{shares[0]:.0%} to {shares[-1]:.0%}" if shares else "–" if kernels else NOT_YET_RUN
    return [f"`{op}`", str(machine["commit"]), machine["device"], machine["date"], said, share]


def gpu_status(results: list[Row]) -> str:
    tests, kernels = newest(results, "gpu-tests"), newest(results, "kernels")
    rows = [status_row(op, tests, kernels) for op in op_names()]
    page = GPU_STATUS + markdown([["op", "commit", "device", "date", "tests", "of the floor"], *rows]) + "\n"
    if tests:
        page += f"\nTests: {made_on(tests['machine'])}; {', '.join(f'{n} {what}' for what, n in tests['outcomes'].items())}.\n"
        page += "".join(f"- skipped: {reason} ({count})\n" for reason, count in tests["skipped"].items())
    return page + (kernel_times(kernels) if kernels else "")


def kernel_times(result: Row) -> str:
    measured = f"reads {result['read_bandwidth_bytes_per_s'] / 1e12:.2f} TB/s, one node of a graph {result['launch_us']:.1f} µs"
    page = f"\n## Times\n\n{made_on(result['machine'], measured)}.\n\n"
    held = [["", "must", "worst measured", "holds"]]
    for must in result["musts"]:
        limit = f"≥ {must['at_least']:g}" if must["at_least"] is not None else f"≤ {must['at_most']:g}"
        held.append(
            [f"{must['kernel']}: {must['what']}", limit, figure(must["worst"], 2), "yes" if must["holds"] else "**no**"]
        )
    times = [["kernel", "case", "µs", "floor µs", "of the floor", "peers, µs"]]
    for row in result["kernels"]:
        peers = [f"{name}: {figure(peer['us']) if 'us' in peer else 'failed'}" for name, peer in row["peers"].items()]
        floors = [figure(row["us"]["median"]), figure(row["floor_us"]), f"{row['fraction_of_floor']:.0%}"]
        times.append([row["kernel"], row["case"], *floors, "; ".join(peers) or "–"])
    return page + markdown(held) + "\n\n" + markdown(times) + "\n"


# docs/kernels.md -----------------------------------------------------------------------------------------------------------------

KERNELS = """# Kernels

Made by `python profiling/tables.py` from what `python profiling/ptxas.py` found: what the compiler makes of each kernel of
`csrc/cuda`. Shared memory is dynamic in all of them: the launcher asks for it, and never for more than 99 KB a block.

"""


def kernels_page(results: list[Row]) -> str:
    result = newest(results, "ptxas")
    if result is None:
        return KERNELS + "Nothing was compiled yet.\n"
    archs = sorted({entry["arch"] for entry in result["kernels"]}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    for entry in result["kernels"]:
        rows.setdefault((entry["file"], entry["kernel"]), {})[entry["arch"]] = entry
    lines = [["file", "kernel", *(f"{arch}: registers, spilled bytes" for arch in archs)]]
    for (file, kernel), of_arch in rows.items():
        cells = [
            f"{e['registers']}, {e['spill_stores'] + e['spill_loads']}" if (e := of_arch.get(arch)) else "–" for arch in archs
        ]
        lines.append([file, f"`{kernel}`", *cells])
    seconds = [["file", *archs]]
    seconds += [[file, *(figure(took.get(arch)) for arch in archs)] for file, took in result["seconds"].items()]
    made = f"nvcc {result['nvcc']}; commit {result['commit']}; {result['date']}.\n\n"
    return KERNELS + made + markdown(lines) + "\n\nSeconds to compile each file:\n\n" + markdown(seconds) + "\n"


# -----------------------------------------------------------------------------------------------------------------------------

PAGES = {"benchmarks.md": benchmarks, "gpu-status.md": gpu_status, "kernels.md": kernels_page}


def main() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("*.json"))]
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / "docs" / name, make(results)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"docs: {', '.join(stale)}: not what profiling/results say; run {sys.argv[0]}")


if __name__ == "__main__":
    main()
