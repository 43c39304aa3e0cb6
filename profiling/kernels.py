"""Time of every CUDA kernel beside its floor and its peers, and whether it is as fast as it must be.

    python profiling/kernels.py [--only linear,attention] [--results profiling/results]

Calls are captured in a graph, each with weights, keys or logits that no call before left in the cache, and the graph is
replayed. A floor is the bytes a call must read over the bandwidth measured beside it, or one more node in a graph, whichever is
longer. The result is one JSON file; profiling/tables.py makes the pages from those.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from graph_timing import launch_seconds, seconds_a_call
from kernel_cases import Case, attentions, draws, linears, small_kernels, speculation
from passes import passes

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


# What must hold ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Must:
    """Of the rows that `of` chooses, the worst figure must be within the limit."""

    kernel: str
    what: str
    of: Callable[[Row], bool]
    figure: Callable[[Row], float]
    at_least: float | None = None
    at_most: float | None = None


def over(row: Row, rows: list[Row], /, **other: Any) -> float:
    """The row's time over that of the case which differs in `other` alone."""
    shape = row["shape"] | other
    return float(
        row["us"]["median"] / next(r["us"]["median"] for r in rows if r["kernel"] == row["kernel"] and r["shape"] == shape)
    )


def musts(rows: list[Row]) -> list[Must]:
    def fraction(row: Row) -> float:
        return float(row["fraction_of_floor"])

    def us(row: Row) -> float:
        return float(row["us"]["median"])

    def shaped(**shape: Any) -> Callable[[Row], bool]:
        return lambda row: all(row["shape"].get(name) == value for name, value in shape.items())

    def large(row: Row) -> bool:
        return bool(row["bytes"] >= 100e6)

    def few(row: Row) -> bool:
        return bool(row["shape"]["rows"] <= 8)

    def small(row: Row) -> bool:
        return llama(row) and not large(row) and few(row)

    llama = shaped(model="Llama-3.1-8B")
    widest = shaped(model="Llama-3.1-8B", rows=64)
    long = "32/8 heads of 128, 8 × 16k keys"
    return [
        Must("linear", "weights of 100 MB and more, 1 to 8 rows: of the floor", lambda r: large(r) and few(r), fraction, 0.85),
        Must("linear", "Llama-3.1-8B's smaller weights, 1 to 8 rows: of the floor", small, fraction, 0.75),
        Must("linear", "Llama-3.1-8B, 64 rows over 1 row", widest, lambda r: over(r, rows, rows=1), None, 1.3),
        Must("paged_attention", f"{long}: of the floor", shaped(sequences=8, rows=1), fraction, 0.8),
        Must(
            "paged_attention",
            f"{long}, 8 rows over 1 row",
            shaped(sequences=8, rows=8),
            lambda r: over(r, rows, rows=1),
            None,
            1.2,
        ),
        Must("paged_attention", "32/8 heads of 128, 1 × 512 keys: µs", shaped(heads=32, keys=512, rows=1), us, None, 8),
        Must("verify", "1 slot, K = 7, temperature 1: µs", shaped(slots=1, settings="temperature 1"), us, None, 20),
        Must("fork", "1 slot, K = 7: µs", shaped(slots=1), us, None, 15),
        Must("cache_lookup", "1 slot: µs", shaped(slots=1), us, None, 5),
        Must("sample", "1 row, temperature 1: µs", shaped(rows=1, settings="temperature 1"), us, None, 15),
        Must("pass", "Llama-3.1-8B, 1 row, 512 keys: of the floor", shaped(model="Llama-3.1-8B", rows=1), fraction, 0.85),
        Must("pass", "Qwen3-0.6B, 1 row: µs", shaped(model="Qwen3-0.6B", rows=1), us, None, 800),
        Must("pass", "Qwen3-0.6B, 24 branch rows: µs", shaped(model="Qwen3-0.6B", rows=24), us, None, 1000),
    ]


def judged(rows: list[Row]) -> list[Row]:
    """What must hold, the worst figure measured for it, and whether it holds; nothing where no case was timed."""
    result = []
    for must in musts(rows):
        figures = [must.figure(row) for row in rows if row["kernel"] == must.kernel and must.of(row)]
        if not figures:
            continue
        worst = min(figures) if must.at_least is not None else max(figures)
        held = worst >= must.at_least if must.at_least is not None else worst <= (must.at_most or 0)
        limits = {"at_least": must.at_least, "at_most": must.at_most}
        result.append({"kernel": must.kernel, "what": must.what, **limits, "worst": worst, "holds": held})
    return result


# Timing ------------------------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "linear": linears,
    "attention": attentions,
    "draws": draws,
    "speculation": speculation,
    "small": small_kernels,
    "passes": passes,
}


def timed(case: Case, bandwidth: float, launch: float) -> Row:
    seconds = seconds_a_call(case.calls, case.reset)
    floor = max(case.bytes / bandwidth, launch)
    peers: dict[str, Any] = {}
    for name, calls in case.peers.items():
        try:
            peers[name] = {"us": seconds_a_call(calls)["median"] * 1e6}
        except (RuntimeError, ValueError, TypeError) as error:  # a peer that cannot do this shape is said to, and no more
            peers[name] = {"failed": str(error).partition("\n")[0]}
    return {
        "kernel": case.kernel,
        "case": case.name,
        "shape": case.shape,
        "bytes": case.bytes,
        "us": {name: value * 1e6 for name, value in seconds.items()},
        "floor_us": floor * 1e6,
        "fraction_of_floor": floor / seconds["median"],
        "peers": peers,
    }


def call_once(families: list[str]) -> None:
    """Inside NVTX ranges: one around all, and one a case."""
    with torch.cuda.nvtx.range("profiled"):
        for family in families:
            for case in FAMILIES[family]():
                torch.cuda.synchronize()
                with torch.cuda.nvtx.range(f"{case.kernel}: {case.name}"):
                    case.calls[0]()
                    torch.cuda.synchronize()


def line(row: Row) -> str:
    peers = "; ".join(
        f"{name} {peer['us']:.1f}" if "us" in peer else f"{name} failed: {peer['failed']}"
        for name, peer in row["peers"].items()
    )
    return (
        f"{row['kernel']:16} {row['case']:44} {row['us']['median']:8.1f} µs, {row['fraction_of_floor']:4.0%} of the floor"
        f"{'; ' + peers if peers else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {', '.join(FAMILIES)}, with commas")
    parser.add_argument("--once", action="store_true", help="call each case once and time nothing: for profilers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = parser.parse_args()
    families = args.only.split(",") if args.only else list(FAMILIES)
    if unknown := set(families) - set(FAMILIES):
        sys.exit(f"kernels.py: there is no {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}.")
    if not torch.cuda.is_available():
        sys.exit(f"SKIPPED: kernels.py; torch {torch.__version__} sees no GPU here.")

    torch.manual_seed(0)
    if args.once:
        call_once(families)
        return
    bandwidth, launch = machine.gpu_read_bandwidth(), launch_seconds()
    info = machine.describe_gpu()
    print(f"{info['device']}: reads {bandwidth / 1e12:.2f} TB/s; one node of a graph takes {launch * 1e6:.1f} µs")
    rows = []
    for family in families:
        for case in FAMILIES[family]():
            rows.append(timed(case, bandwidth, launch))
            print(line(rows[-1]), flush=True)
            del case
            gc.collect()
            torch.cuda.empty_cache()
    result = {
        "what": "kernels",
        "machine": info,
        "read_bandwidth_bytes_per_s": bandwidth,
        "launch_us": launch * 1e6,
        "kernels": rows,
        "musts": judged(rows),
    }
    for must in result["musts"]:
        limit = f"at least {must['at_least']}" if must["at_least"] is not None else f"at most {must['at_most']}"
        print(f"{'holds' if must['holds'] else 'DOES NOT HOLD'}: {must['kernel']}, {must['what']} {must['worst']:.2f}, {limit}")
    args.results.mkdir(exist_ok=True, parents=True)
    name = "kernels" if not args.only else f"kernels-{args.only.replace(',', '-')}"
    path = args.results / f"{info['date']}-{machine.slug(info['device'])}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
