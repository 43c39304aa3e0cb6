"""Some ops compared with CuPy, an oracle that shares only the bytes of the inputs with torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ops.cases import i32, sample, sampling
from ssd import ops

VOCABULARY, PAGE_SIZE = 128_256, 16

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


def wide(x: Tensor) -> Any:
    """The float64 values, converted from the bytes, because CuPy has no bfloat16."""
    return cupy.from_dlpack(x.float().contiguous()).astype(cupy.float64)


def assert_close(actual: Tensor, expected: Any, relative: float) -> None:
    """The error is relative to the largest entry."""
    difference = cupy.abs(wide(actual) - expected).max()
    assert float(difference) <= relative * float(cupy.abs(expected).max())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


@pytest.mark.parametrize("rows", [1, 24, 300])
def test_linear_equals_cupy(rows: int) -> None:
    x, weight = normal(rows, 4096), normal(1024, 4096)
    got = ops.linear(x, ops.pack_weight(weight), 1024, float32_out=True)
    assert_close(got, wide(x) @ wide(weight).T, 1e-5)


@pytest.mark.parametrize("rows, width", [(1, 4096), (24, 576), (300, 81)])
def test_rms_norm_equals_cupy(rows: int, width: int) -> None:
    x, weight = normal(rows, width), normal(width)
    a = wide(x)
    expected = a / cupy.sqrt((a * a).mean(1, keepdims=True) + 1e-5) * wide(weight)
    assert_close(ops.rms_norm(x, weight, 1e-5), expected, 2.0**-8)


@pytest.mark.parametrize("keys", [1, 130, 5000])
def test_paged_attention_equals_cupy(keys: int) -> None:
    pages = -(-keys // PAGE_SIZE)
    k_cache, v_cache = (normal(pages, PAGE_SIZE, 2, 128) for _ in range(2))
    table, q = torch.randperm(pages, device="cuda").int(), normal(3, 8, 128)
    prefix = torch.full((3,), keys, device="cuda", dtype=torch.int32)
    got = ops.paged_attention(q, k_cache, v_cache, table[None], torch.zeros_like(prefix), prefix, 0.088)
    k, v = (wide(cache[table.long()].flatten(0, 1)[:keys]).repeat(4, axis=1) for cache in (k_cache, v_cache))
    scores = cupy.einsum("rhd,jhd->rhj", wide(q), k) * 0.088
    weights = cupy.exp(scores - scores.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    assert_close(got, cupy.einsum("rhj,jhd->rhd", weights, v), 1e-2)


def test_row_stats_equal_cupy() -> None:
    logits = 4 * torch.randn(5, VOCABULARY, device="cuda")
    stats = ops.row_stats(logits, *(x.cuda() for x in sampling(5, temperature=0.7)))
    z = wide(logits) / 0.7
    expected = cupy.log(cupy.exp(z - z.max(1, keepdims=True)).sum(1))
    assert_close(stats[:, 0], wide(logits).max(1), 0)
    assert_close(stats[:, 1], expected, 1e-5)


def test_greedy_sample_is_the_argmax() -> None:
    logits = torch.randint(0, 1000, (9, VOCABULARY), device="cuda").float()  # ties: the lower id
    stats = ops.row_stats(logits, *(x.cuda() for x in sampling(9, temperature=0.0)))
    drawn = sample(logits, stats, torch.arange(9, device="cuda"), i32([0] * 9).cuda())
    assert drawn[:, 0].tolist() == cupy.argmax(wide(logits), axis=1).tolist()
