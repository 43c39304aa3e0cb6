"""Makes docs/benchmarks.md, docs/gpu-status.md, docs/kernels.md and the README's figures from profiling/results/*.json: none is typed.

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


def prompts_in_words(settings: Row) -> str:
    """How many of which; of a file, with what tells it from others of its name."""
    digest = settings["prompts_sha256"]
    return f"{settings['limit']} prompts of {settings['prompts']}" + (f" (sha256 {digest[:12]})" if digest else "")


def decode_section(result: Row) -> str:
    machine, settings = result["machine"], result["settings"]
    made_with = [
        prompts_in_words(settings),
        f"{settings['max_new_tokens']} tokens",
        f"temperature {settings['temperature']}",
        f"K = {settings['lookahead']}, B = {settings['budget']}",
        f"dtype {settings['dtype']}",
        f"batch {settings.get('batch', 1)}, {settings['runs']} runs",
    ]
    made = made_on({**machine, "device": f"{machine['device']}, {machine['cores']} cores, {machine['instruction_set']}"})
    lines = [f"\n## {result['what']}: {settings['target']}, draft {settings['draft']}\n", f"{made}.  "]
    lines += [", ".join(made_with) + ".\n", decode_table(result)]
    if result["identical"] is not None:
        lines.append(f"\nTokens of all modes identical: {'yes' if all(result['identical'].values()) else 'NO'}.")
    return "\n".join(lines) + "\n"


def speed(results: list[Row]) -> str:
    """The README's figures: the newest decode with the draft that comes with the target, and what that draft is worth."""
    decode = newest([r for r in results if "modes" in r and r["settings"]["draft"] == "auto"], "decode-smollm2-draft")
    drafts = newest(results, "drafts")
    if decode is None or drafts is None:
        return "Not measured yet.\n"
    settings, modes, peers = decode["settings"], decode["modes"], decode["peers"]
    rates = {name: mode["decode_tokens_per_s"]["median"] for name, mode in modes.items()}
    rates |= {name: median(peer["decode_tokens_per_s"]) for name, peer in peers.items()}
    lines = [["", "tokens/s", "over ar", "tokens a round", "hit rate"]]
    for name, rate in sorted(rates.items(), key=lambda each: -each[1]):
        mode = modes.get(name, {"tokens_per_round": None, "hit_rate": None})
        label = f"ssd, mode `{name}`" if name in modes else name
        lines.append(
            [
                label,
                figure(rate),
                figure(rate / rates["ar"], 2),
                figure(mode["tokens_per_round"], 2),
                figure(mode["hit_rate"], 2),
            ]
        )
    (own,) = (draft for draft in drafts["drafts"] if draft["draft"] == "auto")
    sets = ", ".join(f"{name} {each['all']['mean']:.2f}" for name, each in own["sets"].items())
    machine = decode["machine"]
    return (
        f"{settings['target']}, {settings['limit']} prompts of {Path(settings['prompts']).stem}, {settings['max_new_tokens']} tokens, "
        f"greedy, K = {settings['lookahead']}, {settings['threads']} threads, in turn in one run "
        f"({machine['device']}, {machine['instruction_set']}; commit {machine['commit']}; {machine['date']}):\n\n"
        f"{markdown(lines)}\n\n"
        f"Tokens a round on whole sets of prompts, K = {drafts['settings']['lookahead']}: {sets}; {own['all']['mean']:.2f} over all.\n"
    )


def hit_rates_section(result: Row) -> str:
    """Of profiling/hit_rates.py: a line for each set of prompts and, pooled, for all of them."""
    machine, settings = result["machine"], result["settings"]
    head = ["temperature", "C", "B", "prompts", "look-ups", "measured", "geometric", "uniform"]
    head += ["measured − geometric, 95 %", "measured − uniform, 95 %", "tokens a round", "acceptance"]
    lines = [head]
    for case in result["hit_rates"]:
        for name, row in [*case["sets"].items(), ("all", case["all"])]:
            rates = [f"{row['hit_rate'][f]:.1%}" for f in ("measured", "geometric", "uniform")]
            ends = [row["measured_less"][f]["mean_95"] for f in ("geometric", "uniform")]
            more = [f"{100 * low:+.1f} to {100 * high:+.1f} points" for low, high in ends]
            known = [f"{case['temperature']:g}", f"{case['saguaro_c']:g}", str(case["budget"]), name, str(row["look_ups"])]
            lines.append([*known, *rates, *more, figure(row["tokens_per_round"], 2), f"{row['acceptance_rate']:.1%}"])
    digests = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in settings["prompts"].items())
    made_with = (
        f"The first {settings['limit']} prompts of {digests}, {settings['max_new_tokens']} tokens, K = {settings['lookahead']}, "
        f"fallback neural; hit rates are pooled, intervals are of the mean over prompts, paired (`python profiling/hit_rates.py --help`)."
    )
    title = f"\n## {result['what']}: {settings['target']}, draft {settings['draft']}\n\n"
    return f"{title}{made_on(machine)}.  \n{made_with}\n\n{markdown(lines)}\n"


def drafts_section(result: Row) -> str:
    """Of profiling/drafts.py: what each draft costs, and what it is worth on each set of prompts."""
    machine, settings = result["machine"], result["settings"]
    steps = [(step["rows"], step["threads"]) for step in result["drafts"][0]["steps"]]
    costs = [
        ["draft", "layers", "ids", "MB a step", *(f"ms, {r} row{'s' * (r > 1)}, {t} thread{'s' * (t > 1)}" for r, t in steps)]
    ]
    worths = [["draft", "prompts", "count", "tokens a round, mean", "95 %", "all tokens over all rounds"]]
    for draft in result["drafts"]:
        costs.append(
            [draft["draft"], str(draft["layers"]), str(draft["vocabulary"]), figure(draft["weight_bytes"] / 1e6)]
            + [figure(step["ms"], 2) for step in draft["steps"]]
        )
        rows = [
            (f"{name}{kind}", each[key])
            for name, each in draft["sets"].items()
            for key, kind in (("all", ""), ("in_a_circle", ", running in a circle"), ("others", ", others"))
        ]
        for name, row in [*rows, ("all", draft["all"])]:
            if row is not None:
                ends = " to ".join(figure(end, 2) for end in row["mean_95"])
                worths.append(
                    [draft["draft"], name, str(row["prompts"]), figure(row["mean"], 2), ends, figure(row["pooled"], 2)]
                )
    digests = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in settings["prompts"].items())
    made_with = (
        f"{digests}; {settings['max_new_tokens']} tokens, greedy, K = {settings['lookahead']}; a step is timed by itself "
        "(`python profiling/drafts.py --help`)."
    )
    title = f"\n## {result['what']}: drafts for {settings['target']}\n\n"
    return f"{title}{made_on(machine)}.  \n{made_with}\n\n{markdown(costs)}\n\n{markdown(worths)}\n"


def rounds_section(result: Row) -> str:
    """Of profiling/rounds.py: a line a mode."""
    machine, settings = result["machine"], result["settings"]
    columns = {
        "T_v ms": ("t_verify_ms", 2),
        "T_d ms": ("t_draft_ms", 2),
        "hidden ms": ("hidden_draft_ms", 2),
        "gap ms, hit": ("gap_after_hit_ms", 3),
        "gap ms, miss": ("gap_after_miss_ms", 3),
        "tokens a round": ("tokens_per_round", 2),
        "hit rate": ("hit_rate", 2),
        "tokens/s": ("decode_tokens_per_s", 1),
        "by the model": ("model_tokens_per_s", 1),
    }
    lines = [["mode", *columns]]
    lines += [[mode, *(figure(row[key], digits) for key, digits in columns.values())] for mode, row in result["rounds"].items()]
    made_with = (
        f"{prompts_in_words(settings)}, {settings['max_new_tokens']} tokens, greedy, K = {settings['lookahead']}, "
        f"B = {settings['budget']}, batch {settings['batch']}, "
        f"device {settings['device']} (`python profiling/rounds.py --help`)."
    )
    title = f"\n## {result['what']}: {settings['target']}, draft {settings['draft']}\n\n"
    page = f"{title}{made_on(machine)}.  \n{made_with}\n\n{markdown(lines)}\n"
    if result["musts"]:
        held = [["must", "limit", "measured", "holds"]]
        for must in result["musts"]:
            limit = " to ".join(f"{each:g}" for each in (must["at_least"], must["at_most"]) if each is not None)
            bound = "" if None not in (must["at_least"], must["at_most"]) else "≥ " if must["at_most"] is None else "≤ "
            held.append([must["what"], bound + limit, figure(must["measured"], 2), "yes" if must["holds"] else "**no**"])
        page += f"\n{markdown(held)}\n"
    if (apart := result.get("projected_two_devices_tokens_per_s")) is not None:
        page += f"\nProjected for a device each (not measured: the speed model, with T_v and T_d of one alone): {apart:.1f} tokens/s.\n"
    return page


SECTIONS = {"rounds": rounds_section, "modes": decode_section, "hit_rates": hit_rates_section, "drafts": drafts_section}


def benchmarks(results: list[Row]) -> str:
    return BENCHMARKS + "".join(section(result) for kind, section in SECTIONS.items() for result in results if kind in result)


# docs/gpu-status.md --------------------------------------------------------------------------------------------------------------

GPU_STATUS = """# GPU status

Made by `python profiling/tables.py` from the results that `make gpu-check` writes on a machine with a GPU: the tests of `tests/ops`
and `tests/gpu` that called an op, and the kernels' times beside their floors. An op without results was **not yet run** on a
GPU; that it compiles (`make kernels`) and passes its tests on the CPU's emulator (`make test-emulator`) does not change that.

Whole decodes (`device="cuda"`: rounds as graphs on two streams, or two GPUs) are in `tests/gpu/test_engine.py`; without a GPU, a fake
device holds their order, running them in any legal one (`tests/engine/test_captured.py`). `ssd doctor` shows which ops the installed
extension has for CUDA, and whether torch sees a GPU.

"""

NOT_YET_RUN = "not yet run"


def op_names() -> list[str]:
    return re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8"))


def newest(results: list[Row], what: str) -> Row | None:
    """Of the results of one kind, by date; files of one day come in the order of their names."""
    return max((r for r in results if r.get("what") == what), key=lambda r: str((r.get("machine") or r)["date"]), default=None)


def tests_on(results: list[Row], what: str) -> Row | None:
    """The newest run of the tests, its parts added up: one file for each process that ran some of them."""
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


def outcomes_of(op: str, tests: Row | None) -> str:
    outcomes = tests["ops"].get(op) if tests else None
    if not outcomes:
        return NOT_YET_RUN
    return f"{outcomes['passed']} passed" + (f", **{outcomes['failed']} failed**" if outcomes["failed"] else "")


def status_row(op: str, emulated: Row | None, tests: Row | None, kernels: Row | None) -> list[str]:
    outcomes = tests["ops"].get(op) if tests else None
    timed = [row for row in kernels["kernels"] if row["kernel"] == op] if kernels else []
    machine = tests["machine"] if tests and outcomes else kernels["machine"] if kernels and timed else None
    if machine is None:
        return [f"`{op}`", outcomes_of(op, emulated), NOT_YET_RUN, NOT_YET_RUN, "–", "–", "–"]
    shares = sorted(row["fraction_of_floor"] for row in timed)
    share = f"{shares[0]:.0%} to {shares[-1]:.0%}" if shares else "–" if kernels else NOT_YET_RUN
    made = [machine["device"], str(machine["commit"]), machine["date"]]
    return [f"`{op}`", outcomes_of(op, emulated), outcomes_of(op, tests), share, *made]


def gpu_status(results: list[Row]) -> str:
    emulated, tests = (tests_on(results, what) for what in ("emulator-tests", "gpu-tests"))
    kernels = newest(results, "kernels")
    rows = [status_row(op, emulated, tests, kernels) for op in op_names()]
    head = ["op", "tests on the emulator", "tests on a GPU", "of the floor", "GPU", "commit", "date"]
    page = GPU_STATUS + markdown([head, *rows]) + "\n" + decodes_on_gpus(results)
    for where, run in (("the emulator", emulated), ("the GPU", tests)):
        if run:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in run["outcomes"].items())
            page += f"\nAll tests on {where}: {counts}; {made_on(run['machine'])}. Skipped there:\n\n"
            page += "".join(f"- {reason} ({count})\n" for reason, count in run["skipped"].items())
    return page + (kernel_times(kernels) if kernels else "")


DECODES = {
    "rounds-random": "Llama-3.1-8B and 3.2-1B, random weights: rounds",
    "decode-random": "the same: tokens/s",
    "rounds-inflated": "Llama-3.1-8B and 3.2-1B, inflated smollm2-135m: rounds",
    "decode-inflated": "the same: tokens/s",
    "rounds-random-32b": "Qwen3-32B and 0.6B, random weights: rounds",
    "decode-random-32b": "the same: tokens/s",
    "rounds-two-gpus": "Qwen3-32B and 0.6B on a GPU each: rounds",
}


def decodes_on_gpus(results: list[Row]) -> str:
    """A line for each whole decode that a GPU is asked for; the figures are docs/benchmarks.md's."""
    lines = [["whole decodes", "GPU", "commit", "date"]]
    for what, name in DECODES.items():
        found = newest(results, what)
        made = (
            [found["machine"]["device"], str(found["machine"]["commit"]), found["machine"]["date"]]
            if found
            else [NOT_YET_RUN, "–", "–"]
        )
        lines.append([f"{name} (`{what}`)", *made])
    return "\n" + markdown(lines) + "\n"


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
`csrc/cuda`. Shared memory is dynamic in all of them, at most 99 KB a block; threads and shared bytes are those of the largest block
that the tests launched on the emulator.

"""


def kernels_page(results: list[Row]) -> str:
    result = newest(results, "ptxas")
    if result is None:
        return KERNELS + "Nothing was compiled yet.\n"
    archs = sorted({entry["arch"] for entry in result["kernels"]}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    for entry in result["kernels"]:
        rows.setdefault((entry["file"], entry["kernel"]), {})[entry["arch"]] = entry
    blocks = (newest(results, "emulator-tests") or {}).get("blocks", {})
    lines = [["file", "kernel", "threads", "shared bytes", *(f"{arch}: registers, spilled bytes" for arch in archs)]]
    for (file, kernel), of_arch in rows.items():
        cells = [
            f"{e['registers']}, {e['spill_stores'] + e['spill_loads']}" if (e := of_arch.get(arch)) else "–" for arch in archs
        ]
        block = blocks.get(kernel, {})
        lines.append([file, f"`{kernel}`", *(str(block.get(name, "–")) for name in ("threads", "shared_bytes")), *cells])
    seconds = [["file", *archs]]
    seconds += [[file, *(figure(took.get(arch)) for arch in archs)] for file, took in result["seconds"].items()]
    made = f"nvcc {result['nvcc']}; commit {result['commit']}; {result['date']}.\n\n"
    return KERNELS + made + markdown(lines) + "\n\nSeconds to compile each file:\n\n" + markdown(seconds) + "\n"


# -----------------------------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"(<!-- speed: made by profiling/tables.py -->\n).*(<!-- end -->)", re.DOTALL)


def readme(results: list[Row]) -> str:
    """The README as it is, with its block of figures made anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"{found[1]}\n{speed(results)}\n{found[2]}", text)


PAGES = {
    "README.md": readme,
    "docs/benchmarks.md": benchmarks,
    "docs/gpu-status.md": gpu_status,
    "docs/kernels.md": kernels_page,
}


def main() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("*.json"))]
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make(results)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what profiling/results say; run {sys.argv[0]}")


if __name__ == "__main__":
    main()
