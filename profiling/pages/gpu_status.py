"""docs/gpu-status.md: the ops, kernels and decodes that a GPU has run, and those that none has."""

from __future__ import annotations

import re
from pathlib import Path

from common.results import EMULATOR_TESTS, GPU_DECODES, GPU_TESTS, KERNELS, Row, newest

from pages.markdown import NOT_YET_RUN, figure, made_on, musts_table, table

OPS = Path(__file__).parents[2] / "csrc" / "ops.cpp"

HEAD = """# GPU status

Made by `python profiling/tables.py` from the results of `make gpu-check` on a machine with a GPU: the tests in `tests/ops`
and `tests/gpu`, counted for each op they called, and the kernels' times with their floors. An op without results was **not
yet run** on a GPU, even if it compiles (`make kernels`) and passes its tests on the CPU's emulator (`make test-emulator`).

Whole decodes (`device="cuda"`: rounds as graphs on two streams, or on two GPUs) are tested in `tests/gpu/test_engine.py`.
Without a GPU, a fake device tests their order: it runs their ops in random legal orders (`tests/engine/test_captured.py`).
`ssd doctor` lists the ops that the installed extension has for CUDA, and says whether torch sees a GPU.

"""


def page(results: list[Row]) -> str:
    emulated, tests = tests_on(results, EMULATOR_TESTS.what), tests_on(results, GPU_TESTS.what)
    kernels = newest(results, KERNELS.what)
    head = ["op", "tests on the emulator", "tests on a GPU", "floor over time", "GPU", "commit", "date"]
    text = HEAD + table([head, *(_op_line(op, emulated, tests, kernels) for op in op_names())])
    text += f"\n\n{decodes_table(results)}\n"
    for where, run in (("the emulator", emulated), ("the GPU", tests)):
        if run:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in run["outcomes"].items())
            text += f"\nAll tests on {where}: {counts}; {made_on(run['machine'])}. Reasons for skipping:\n\n"
            text += "".join(f"- {reason} ({count})\n" for reason, count in run["skipped"].items())
    return text + (_kernel_times(kernels) if kernels else "")


def tests_on(results: list[Row], what: str) -> Row | None:
    """The newest test run with its parts added up; each process of a run writes a file of its own."""
    last = newest(results, what)
    if last is None:
        return None
    whole: Row = {"what": what, "machine": last["machine"], "outcomes": {}, "skipped": {}, "failed": [], "ops": {}}

    def add(counts: Row, more: Row) -> None:
        for name, count in more.items():
            counts[name] = counts.get(name, 0) + count

    for part in (r for r in results if r.get("what") == what and r["machine"] == last["machine"]):
        add(whole["outcomes"], part["outcomes"])
        add(whole["skipped"], part["skipped"])
        whole["failed"] += part.get("failed", [])
        for op, outcomes in part["ops"].items():
            add(whole["ops"].setdefault(op, {}), outcomes)
    return whole


def op_names() -> list[str]:
    return re.findall(r'm\.def\(\s*"(\w+)\(', OPS.read_text(encoding="utf-8"))


def _op_line(op: str, emulated: Row | None, tests: Row | None, kernels: Row | None) -> list[str]:
    tested = bool(tests and tests["ops"].get(op))
    timed = [row for row in kernels[KERNELS.figures] if row["kernel"] == op] if kernels else []
    machine = tests["machine"] if tests and tested else kernels["machine"] if kernels and timed else None
    if machine is None:
        return [f"`{op}`", _outcomes(op, emulated), NOT_YET_RUN, NOT_YET_RUN, "–", "–", "–"]
    shares = sorted(row["fraction_of_floor"] for row in timed)
    share = f"{shares[0]:.0%} to {shares[-1]:.0%}" if shares else "–" if kernels else NOT_YET_RUN
    made = [machine["device"], str(machine["commit"]), machine["date"]]
    return [f"`{op}`", _outcomes(op, emulated), _outcomes(op, tests), share, *made]


def _outcomes(op: str, tests: Row | None) -> str:
    outcomes = tests["ops"].get(op) if tests else None
    if not outcomes:
        return NOT_YET_RUN
    return f"{outcomes['passed']} passed" + (f", **{outcomes['failed']} failed**" if outcomes["failed"] else "")


def decodes_table(results: list[Row]) -> str:
    """A line for each whole decode of `make gpu-check`; their figures are in docs/benchmarks.md."""
    lines = [["whole decodes", "GPU", "commit", "date"]]
    for what, title in GPU_DECODES.items():
        made = [NOT_YET_RUN, "–", "–"]
        if found := newest(results, what):
            made = [found["machine"]["device"], str(found["machine"]["commit"]), found["machine"]["date"]]
        lines.append([f"{title} (`{what}`)", *made])
    return table(lines)


def _kernel_times(result: Row) -> str:
    measured = f"reads {result['read_bandwidth_bytes_per_s'] / 1e12:.2f} TB/s, one node of a graph {result['launch_us']:.1f} µs"
    lines = [["kernel", "case", "µs", "floor µs", "floor over time", "peers, µs"]]
    for row in result[KERNELS.figures]:
        peers = [f"{name}: {figure(peer['us']) if 'us' in peer else 'failed'}" for name, peer in row["peers"].items()]
        times = [figure(row["us"]["median"]), figure(row["floor_us"]), f"{row['fraction_of_floor']:.0%}"]
        lines.append([row["kernel"], row["case"], *times, "; ".join(peers) or "–"])
    return f"\n## Times\n\n{made_on(result['machine'], measured)}.\n\n{musts_table(result['musts'])}\n\n{table(lines)}\n"
