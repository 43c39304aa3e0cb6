"""The quality that a format of the weights costs: perplexity, and agreement with the target's own top token.

    python profiling/quality.py --formats bf16,int8

The text is the standard library's docstrings, read at run time, or --text FILE. It is cut into windows, and each window is
predicted by itself, from its second token on. Nothing of it is kept in the result.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common.models import Models
from common.options import add_flags
from common.results import QUALITY, RESULTS, write_result
from torch import Tensor

from ssd.bench import machine
from ssd.kv.cache import PAGE_SIZE, KVCache, Rows
from ssd.models.transformer import Transformer


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library's modules, classes and functions, in the order of the files' names."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


def windows_of(text: str, models: Models, tokens: int, window: int) -> Tensor:
    """[windows, window] int32: the first tokens of a text, cut into windows; the rest of the last is left out."""
    tokenizer = models.target.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)[:tokens]
    if len(ids) < window:
        raise SystemExit(f"the text has {len(ids)} tokens, and a window has {window}; give a longer text.")
    return torch.tensor(ids[: len(ids) // window * window], dtype=torch.int32).view(-1, window)


def logits_of(model: Transformer, cache: KVCache, ids: Tensor) -> Tensor:
    """The logits after each token of one window, [window, V] float32. ids: [window] int32."""
    positions = torch.arange(len(ids), dtype=torch.int32)
    pages = torch.arange(1, 1 + -(-len(ids) // PAGE_SIZE), dtype=torch.int32)
    rows = Rows(
        ids=ids,
        positions=positions,
        kv_slots=pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE,
        row_seq=torch.zeros_like(positions),
        prefix_len=positions + 1,
        page_table=pages[None],
    )
    return model.logits(model.forward(rows, cache))


def measure(models: dict[str, Transformer], windows: Tensor) -> dict[str, dict[str, float]]:
    """Perplexity of each model, and how often its top token is the first model's."""
    reference = next(iter(models))
    pages = 1 + -(-windows.shape[1] // PAGE_SIZE)
    caches = {name: KVCache(m.config, pages, m.dtype, torch.device("cpu")) for name, m in models.items()}
    loss, agreed, predicted = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
    for ids in windows:
        logits = {name: logits_of(model, caches[name], ids)[:-1] for name, model in models.items()}
        following, top = ids[1:].long(), logits[reference].argmax(-1)
        predicted += len(following)
        for name in models:
            loss[name] += float(torch.nn.functional.cross_entropy(logits[name], following, reduction="sum"))
            agreed[name] += int((logits[name].argmax(-1) == top).sum())
    return {name: {"perplexity": math.exp(loss[name] / predicted), "agreement": agreed[name] / predicted} for name in models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="bf16,int8", help="formats of the weights; the first one is the reference")
    parser.add_argument("--text", type=Path, help="text to predict; the standard library's docstrings unless given")
    parser.add_argument("--tokens", type=int, default=50_000, help="number of tokens of the text")
    parser.add_argument("--window", type=int, default=512, help="tokens that are predicted in one piece")
    parser.add_argument("--name", default=QUALITY.what, help="name of the result file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    add_flags(parser, "target", "dtype")
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8") if args.text else "\n\n".join(docstrings())
    formats = args.formats.split(",")
    loaded = {name: Models(args.target, "none", {"dtype": args.dtype, "weights": name}) for name in formats}
    windows = windows_of(text, loaded[formats[0]], args.tokens, args.window)
    began = time.perf_counter()
    with torch.inference_mode():
        measured = measure({name: models.target.model for name, models in loaded.items()}, windows)
    rows: dict[str, Any] = {}
    for name, figures in measured.items():
        rows[name] = figures | {"megabytes": loaded[name].target.model.weight_bytes() / 1e6}
        print(name, " ".join(f"{key} {value:.4f}" for key, value in rows[name].items()), flush=True)
    settings = {
        "target": Path(args.target).name,
        "dtype": args.dtype,
        "text": args.text.name if args.text else "the standard library's docstrings",
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokens": windows.numel(),
        "window": args.window,
    }
    result = {"what": args.name, "machine": machine.describe(), "settings": settings, QUALITY.figures: rows}
    print(write_result(result, args.results), f"({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
