"""Plots a result of profiling/kernels.py: bytes/s over bytes, under the two limits of a kernel that only reads.

    python profiling/roofline.py RESULT.json [--out PLOT.png]

The slanted line is the time of a launch, the level line the measured bandwidth. Each dot is a case, each cross a peer at the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def plot(result: dict[str, Any], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    bandwidth, launch = result["read_bandwidth_bytes_per_s"], result["launch_us"] * 1e-6
    rows = result["kernels"]
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    ends = min(row["bytes"] for row in rows) / 2, max(row["bytes"] for row in rows) * 2
    corner = bandwidth * launch
    axes.plot([ends[0], corner, ends[1]], [ends[0] / launch, bandwidth, bandwidth], color="black", label="floor")
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        of_kernel = [row for row in rows if row["kernel"] == kernel]
        points = axes.scatter(
            [row["bytes"] for row in of_kernel], [row["bytes"] / row["us"]["median"] * 1e6 for row in of_kernel], label=kernel
        )
        peers = [(row["bytes"], peer["us"]) for row in of_kernel for peer in row["peers"].values() if "us" in peer]
        axes.scatter(
            [size for size, _ in peers], [size / us * 1e6 for size, us in peers], marker="x", s=16, color=points.get_facecolor()
        )
    axes.set(xscale="log", yscale="log", xlabel="bytes that a call must read", ylabel="bytes/s")
    axes.set_title(f"{result['machine']['device']}, commit {result['machine']['commit']}; crosses: peers")
    axes.legend(fontsize="small")
    axes.grid(which="both", alpha=0.2)
    figure.savefig(out, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="a result file of profiling/kernels.py")
    parser.add_argument("--out", type=Path, help="path of the plot; the result's own path with .png by default")
    args = parser.parse_args()
    out = args.out or args.result.with_suffix(".png")
    try:
        plot(json.loads(args.result.read_text(encoding="utf-8")), out)
    except ImportError:
        sys.exit("SKIPPED: roofline.py; matplotlib is not installed.")
    print(out)


if __name__ == "__main__":
    main()
