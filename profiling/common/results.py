"""The result files in profiling/results: their schema, and how they are named, written and read.

A result is one JSON object. `what` names its run, and the pages look results up by that name. `machine` (machine.py) says
where and when it was made; a compilation needs no machine and has `date`, `nvcc` and `commit` instead. A `Kind` says which
script writes a result, and under which key its figures are. Only the standard library is imported here, so that the pages can
be made without torch.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

Row = dict[str, Any]  # a result, or one line of its figures


@dataclass(frozen=True)
class Kind:
    """The results of one script. what: their name, unless --name gives another. figures: the key of their figures."""

    what: str
    figures: str


DECODE = Kind("decode", "modes")  # decode.py; also `peers`, the same decode by other engines
ROUNDS = Kind("rounds", "rounds")  # rounds.py; also `musts` (musts.py)
HIT_RATES = Kind("hit-rates", "hit_rates")  # hit_rates.py
DRAFTS = Kind("drafts", "drafts")  # drafts.py
QUALITY = Kind("quality", "quality")  # quality.py
PREFIXES = Kind("prefixes", "prefixes")  # prefixes.py; also `first_token` and `musts`
KERNELS = Kind("kernels", "kernels")  # kernels.py; also `musts`
PTXAS = Kind("ptxas", "kernels")  # ptxas.py
GPU_TESTS, EMULATOR_TESTS, CPU_TESTS = (Kind(f"{name}-tests", "ops") for name in ("gpu", "emulator", "cpu"))  # tests/results.py

README_DECODES = ("decode-smollm2-draft", "decode-smollm2-int8")  # the decodes that the README quotes

# The whole decodes of `make gpu-check` (gpu_check.py gives them these names) and their titles.
GPU_DECODES = {
    "rounds-bigram": "Llama-3.1-8B and 3.2-1B, a draft that is right 4 times in 5: rounds",
    "decode-bigram": "the same: tokens/s",
    "rounds-bigram-int8": "Llama-3.1-8B and 3.2-1B in int8, a draft that is right 4 times in 5: rounds",
    "decode-bigram-int8": "the same: tokens/s",
    "rounds-inflated": "Llama-3.1-8B and 3.2-1B, inflated smollm2-135m: rounds",
    "decode-inflated": "the same: tokens/s",
    "rounds-bigram-32b": "Qwen3-32B and 0.6B, a draft that is right 4 times in 5: rounds",
    "decode-bigram-32b": "the same: tokens/s",
    "rounds-two-gpus": "Qwen3-32B and 0.6B on a GPU each: rounds",
}


def write_result(result: Row, folder: Path = RESULTS, name: str | None = None) -> Path:
    """Write a result to the folder as DATE-DEVICE-NAME.json, or as DATE-NVCC-NAME.json for a compilation; returns the path.

    The file appears whole, or not at all. name: in the file's name (None: result["what"]).
    """
    made_by = result["machine"]["device"] if "machine" in result else f"nvcc {result['nvcc']}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date_of(result)}-{_slug(made_by)}-{name or result['what']}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def read_results(folder: Path = RESULTS) -> list[Row]:
    """All results of the folder, in the order of their files' names, so by date."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def newest(results: Sequence[Row], what: str) -> Row | None:
    """The newest result of this name; of those with the same date, the first in `results`."""
    return max((r for r in results if r.get("what") == what), key=date_of, default=None)


def date_of(result: Row) -> str:
    return str(result.get("machine", result)["date"])


def settings_of(args: argparse.Namespace, *left_out: str) -> Row:
    """A script's options as its result records them. left_out: more options that do not belong there."""
    return {name: value for name, value in vars(args).items() if name not in ("name", "prompts", *left_out)}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
