"""Times of every CUDA kernel beside its floor and its peers, and whether they keep their limits.

    python profiling/kernels.py [--only linear,attention] [--results profiling/results]

Calls are captured in a graph and the graph is replayed; no call finds its weights, keys or logits in the cache. The floor of
a call is the time to read its bytes at the bandwidth measured in the same run, or the time of one more node in a graph if
that is longer. The result is one JSON file; profiling/tables.py makes the pages from it.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import musts
from common.musts import Must
from common.results import KERNELS, RESULTS, Row, write_result
from graph_timing import launch_seconds, seconds_a_call
from kernel_cases import Case, attentions, draws, linears, small_kernels, speculation
from passes import passes

from ssd.bench import machine

# Musts ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelMust:
    """A limit for the worst figure of a kernel's rows. chosen: whether a row counts. figure: of a row."""

    kernel: str
    chosen: Callable[[Row], bool]
    figure: Callable[[Row], float]
    must: Must


def over(row: Row, rows: list[Row], /, **other: Any) -> float:
    """The row's time over the time of the case that differs from it only in `other`."""
    shape = row["shape"] | other
    return float(
        row["us"]["median"] / next(r["us"]["median"] for r in rows if r["kernel"] == row["kernel"] and r["shape"] == shape)
    )


def kernel_musts(rows: list[Row]) -> list[KernelMust]:
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

    llama = shaped(model="Llama-3.1-8B", weights="bf16")
    widest = shaped(model="Llama-3.1-8B", weights="bf16", rows=64)
    long = "32/8 heads of 128, 8 × 16k keys"
    return [
        KernelMust(
            "linear",
            lambda row: large(row) and few(row),
            fraction,
            Must("weights of 100 MB and more, 1 to 8 rows: floor over time", at_least=0.85),
        ),
        KernelMust(
            "linear", small, fraction, Must("Llama-3.1-8B's smaller weights, 1 to 8 rows: floor over time", at_least=0.75)
        ),
        KernelMust(
            "linear", widest, lambda row: over(row, rows, rows=1), Must("Llama-3.1-8B, 64 rows over 1 row", at_most=1.3)
        ),
        KernelMust("paged_attention", shaped(sequences=8, rows=1), fraction, Must(f"{long}: floor over time", at_least=0.8)),
        KernelMust(
            "paged_attention",
            shaped(sequences=8, rows=8),
            lambda row: over(row, rows, rows=1),
            Must(f"{long}, 8 rows over 1 row", at_most=1.2),
        ),
        KernelMust(
            "paged_attention", shaped(heads=32, keys=512, rows=1), us, Must("32/8 heads of 128, 1 × 512 keys: µs", at_most=8)
        ),
        KernelMust(
            "verify", shaped(slots=1, settings="temperature 1"), us, Must("1 slot, K = 7, temperature 1: µs", at_most=20)
        ),
        KernelMust("fork", shaped(slots=1), us, Must("1 slot, K = 7: µs", at_most=15)),
        KernelMust("cache_lookup", shaped(slots=1), us, Must("1 slot: µs", at_most=5)),
        KernelMust("sample", shaped(rows=1, settings="temperature 1"), us, Must("1 row, temperature 1: µs", at_most=15)),
        KernelMust(
            "pass",
            shaped(model="Llama-3.1-8B", weights="bf16", rows=1),
            fraction,
            Must("Llama-3.1-8B, 1 row, 512 keys: floor over time", at_least=0.85),
        ),
        KernelMust(
            "pass",
            shaped(model="Llama-3.1-8B", weights="int8", rows=1),
            lambda row: over(row, rows, weights="bf16"),
            Must("Llama-3.1-8B, 1 row, 512 keys, int8 over bf16", at_most=0.6),
        ),
        KernelMust("pass", shaped(model="Qwen3-0.6B", rows=1), us, Must("Qwen3-0.6B, 1 row: µs", at_most=800)),
        KernelMust("pass", shaped(model="Qwen3-0.6B", rows=24), us, Must("Qwen3-0.6B, 24 branch rows: µs", at_most=1000)),
    ]


def judged(rows: list[Row]) -> list[Row]:
    """Every must of these rows, judged by its worst figure. A must whose cases were not timed is left out."""
    result = []
    for each in kernel_musts(rows):
        measured = [each.figure(row) for row in rows if row["kernel"] == each.kernel and each.chosen(row)]
        if measured:
            worst = min(measured) if each.must.at_least is not None else max(measured)
            result.append({"kernel": each.kernel} | each.must.judged(worst))
    return result


# Timing -----------------------------------------------------------------------------------------------------------------------

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
        except (
            RuntimeError,
            ValueError,
            TypeError,
        ) as error:  # a peer that refuses this shape is reported, and the run goes on
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
    """Call each case once, in an NVTX range of its own; the range "profiled" is around them all."""
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
        f"{row['kernel']:16} {row['case']:44} {row['us']['median']:8.1f} µs, floor / time {row['fraction_of_floor']:4.0%}"
        f"{'; ' + peers if peers else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"families to time, separated by commas: {', '.join(FAMILIES)}")
    parser.add_argument("--once", action="store_true", help="one call of each case and no timing, for profilers")
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
    name = f"{KERNELS.what}-{args.only.replace(',', '-')}" if args.only else None
    rows: list[Row] = []
    for family in families:
        for case in FAMILIES[family]():
            rows.append(timed(case, bandwidth, launch))
            print(line(rows[-1]), flush=True)
            del case
            gc.collect()
            torch.cuda.empty_cache()
        result = {
            "what": KERNELS.what,
            "machine": info,
            "read_bandwidth_bytes_per_s": bandwidth,
            "launch_us": launch * 1e6,
            KERNELS.figures: rows,
            "musts": judged(rows),
        }
        path = write_result(result, args.results, name)  # after each family: a run that is cut off keeps its figures
    for must in result["musts"]:
        print(musts.line(must))
    print(path)


if __name__ == "__main__":
    main()
