"""Whole forward passes of models with random weights, each as one graph: all kernels of a pass together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_cases import BFLOAT16, PAGE_SIZE, Case, count, i32, named
from shapes import SHAPES, random_model

from ssd.kv.cache import KVCache, Rows
from ssd.options import WeightsName


def decode_rows(keys: int, rows: int, suffix: int) -> tuple[Rows, int]:
    """`rows` rows of one sequence, and the number of K/V pages that they need. Each row sees `keys` keys, the last `suffix` of
    them in its own KV slots."""
    prefix = keys - suffix
    pages = -(-keys // PAGE_SIZE)
    own = pages * PAGE_SIZE + torch.arange(rows * max(suffix, 1)).view(rows, -1)  # [rows, suffix]
    slots = own[:, -1] if suffix else torch.full((rows,), keys - 1)
    return Rows(
        ids=torch.randint(1000, (rows,)).int().cuda(),
        positions=i32([keys - 1] * rows),
        kv_slots=slots.int().cuda(),
        row_seq=i32([0] * rows),
        prefix_len=i32([prefix] * rows),
        page_table=torch.randperm(pages).int()[None].cuda(),
        suffix_slots=own.int().cuda() if suffix else None,
        suffix_len=i32([suffix] * rows) if suffix else None,
    ), pages + -(-own.numel() // PAGE_SIZE)


def passes() -> Iterator[Case]:
    each: list[tuple[str, WeightsName]] = [(name, "bf16") for name in ("Llama-3.1-8B", "Llama-3.2-1B", "Qwen3-0.6B")]
    for name, weights in [*each, ("Llama-3.1-8B", "int8"), ("Llama-3.2-1B", "int8")]:
        shape = SHAPES[name]
        model = random_model(shape, "cuda", weights=weights)
        for rows_count, suffix, keys in ((1, 0, 512), (24, 3, 512)):
            rows, pages = decode_rows(keys, rows_count, suffix)
            cache = KVCache(shape, pages, BFLOAT16, torch.device("cuda"))
            cache.kv.normal_()
            of = {"model": name, "weights": weights, "rows": rows_count, "keys": keys, "suffix": suffix}
            yield Case(
                "pass",
                f"{named(name, weights)}, {count(rows_count, 'row')}, {keys} keys",
                of,
                [lambda m=model, r=rows, c=cache: m.logits(m.forward(r, c))],
                model.weight_bytes(),
            )
        del model
