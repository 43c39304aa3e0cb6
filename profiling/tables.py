"""Makes docs/benchmarks.md from profiling/results/*.json: no figure in it is typed.

python profiling/tables.py          writes the page
python profiling/tables.py --check  fails if the page is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `python profiling/tables.py` from the files in `profiling/results`, each written by the benchmark itself
(`python profiling/decode.py --help`). Decode speed excludes the prefill. Modes and peers took turns in one run. The floor of a
target pass is one read of every weight at the bandwidth measured beside it.
"""


Row = dict[str, Any]

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


def figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def table(result: Row) -> list[str]:
    base = next(iter(result["modes"].values()))["decode_tokens_per_s"]["median"]
    lines = [["", "threads", *(title for title, _ in COLUMNS)], ["---"] * (len(COLUMNS) + 2)]
    for name, mode in result["modes"].items():
        row = mode | {"over_ar": mode["decode_tokens_per_s"]["median"] / base}
        lines.append([name, str(result["threads"][name]), *(show(row) for _, show in COLUMNS)])
    for name, peer in result["peers"].items():
        rate = median(peer["decode_tokens_per_s"])
        known = [figure(rate), "–", figure(rate / base, 2)]
        lines.append([name, str(peer["first"].get("threads", "–")), *known, *["–"] * (len(COLUMNS) - len(known))])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def section(result: Row) -> str:
    machine, settings = result["machine"], result["settings"]
    made_on = [
        f"{machine['device']}, {machine['cores']} cores, {machine['instruction_set']}",
        f"torch {machine['torch']}",
        f"commit {machine['commit']}",
        machine["date"],
    ]
    made_with = [
        f"{settings['limit']} prompts of {settings['prompts']} (sha256 {settings['prompts_sha256'][:12]})",
        f"{settings['max_new_tokens']} tokens",
        f"temperature {settings['temperature']}",
        f"K = {settings['lookahead']}, B = {settings['budget']}",
        f"dtype {settings['dtype']}",
        f"batch 1, {settings['runs']} runs",
    ]
    lines = [f"\n## {result['what']}: {settings['target']}, draft {settings['draft']}\n", "; ".join(made_on) + ".  "]
    lines += [", ".join(made_with) + ".\n", *table(result)]
    if result["identical"] is not None:
        lines.append(f"\nTokens of all modes identical: {'yes' if all(result['identical'].values()) else 'NO'}.")
    return "\n".join(lines) + "\n"


def page() -> str:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("*.json"))]
    return HEAD + "".join(section(result) for result in results if "modes" in result)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page() else f"{PAGE.name} is stale; run {sys.argv[0]}"
        )
    PAGE.write_text(page(), encoding="utf-8")
