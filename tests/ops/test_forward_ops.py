"""The forward pass's ops compared with the oracle: every dtype, epilogue, page size, head size and head grouping.

test_isa.py runs this file again under each lower instruction set of the machine.
"""

from __future__ import annotations

import pytest
import torch

import reference
from ops.backend import chosen, inputs, only_on_the_cpu
from ops.cases import DTYPE_NAMES, DTYPES, NAN, PagedKeys, assert_rounds_to, assert_same_bits, generator, i32, ints
from ssd import ops

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)


# embed, rms_norm --------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("rows, width", [(1, 1), (3, 17), (9, 64), (40, 576), (300, 33)])
def test_embed_copies_rows(dtype: torch.dtype, rows: int, width: int) -> None:
    g = generator(rows)
    table = torch.randn(50, width, generator=g).to(dtype)
    ids = ints(0, 50, (rows,), g)
    assert_same_bits(ops.embed(ids, table), reference.embed(ids, table))


@dtypes
def test_embed_reads_row_0_for_ids_outside_the_table(dtype: torch.dtype) -> None:
    table = torch.randn(5, 8, generator=generator(0)).to(dtype)
    got = ops.embed(i32([-1, 5, 4, -(2**31), 2**31 - 1]), table)
    assert_same_bits(got, table[[0, 0, 4, 0, 0]])


@dtypes
@pytest.mark.parametrize("rows, width", [(1, 1), (2, 15), (9, 64), (40, 576), (300, 81)])
def test_rms_norm_equals_the_oracle(dtype: torch.dtype, rows: int, width: int) -> None:
    g = generator(width)
    x = (torch.randn(rows, width, generator=g) * 3).to(dtype)
    weight = torch.randn(width, generator=g).to(dtype)
    assert_rounds_to(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@dtypes
def test_rms_norm_of_zeros_is_zero(dtype: torch.dtype) -> None:
    weight = torch.ones(24, dtype=dtype)
    assert_same_bits(ops.rms_norm(torch.zeros(2, 24, dtype=dtype), weight, 1e-6), torch.zeros(2, 24, dtype=dtype))


# linear -----------------------------------------------------------------------------------------------------------------------

LINEAR_SIZES = [  # rows, in, out, bias
    (1, 1, 2, False),
    (1, 64, 48, True),
    (2, 3, 6, True),
    (3, 31, 34, False),
    (4, 576, 192, False),
    (5, 33, 16, True),
    (6, 130, 18, False),
    (7, 65, 100, True),
    (8, 257, 32, False),
    (9, 96, 62, True),
    (24, 72, 34, True),
    (40, 100, 66, False),
    (40, 40, 16_930, False),  # so wide that a kernel may choose larger tiles
    (64, 40, 4_240, True),
    (50, 72, 34, False),
    (14, 40, 2_114, True),
    (300, 67, 50, True),
]


epilogues = pytest.mark.parametrize("epilogue", ops.EPILOGUES)
outputs = pytest.mark.parametrize("float32_out", [False, True], ids=["rounded", "float32"])


def assert_linear(dtype: torch.dtype, epilogue: str, float32_out: bool, rows: int, n_in: int, n_out: int, biased: bool) -> None:
    g = generator(1000 * rows + n_in)
    n_in = inputs(n_in)
    x = torch.randn(rows, n_in, generator=g).to(dtype)
    weight = (torch.randn(n_out, n_in, generator=g) / n_in**0.5).to(dtype)
    bias = torch.randn(n_out, generator=g).to(dtype) if biased else None
    residual = torch.randn(rows, n_out, generator=g).to(dtype) if epilogue == "add" else None
    got = ops.linear(x, ops.pack_weight(weight, epilogue), n_out, epilogue, bias, residual, float32_out)
    assert_rounds_to(got, reference.linear(x, weight, epilogue, bias, residual, float32_out))


@dtypes
@epilogues
@outputs
@pytest.mark.parametrize("rows, n_in, n_out, biased", LINEAR_SIZES)
def test_linear_equals_the_oracle(
    dtype: torch.dtype, epilogue: str, float32_out: bool, rows: int, n_in: int, n_out: int, biased: bool
) -> None:
    assert_linear(dtype, epilogue, float32_out, rows, n_in, n_out, biased)


@dtypes
@pytest.mark.parametrize("epilogue", ["none", "add"])
@outputs
@pytest.mark.parametrize("rows, n_in, n_out", [(1, 5, 1), (4, 63, 17), (9, 128, 33), (40, 7, 15), (300, 9, 31)])
def test_linear_handles_an_odd_number_of_outputs(
    dtype: torch.dtype, epilogue: str, float32_out: bool, rows: int, n_in: int, n_out: int
) -> None:
    assert_linear(dtype, epilogue, float32_out, rows, n_in, n_out, biased=True)


@dtypes
def test_linear_handles_very_many_outputs(dtype: torch.dtype) -> None:
    """So many that a kernel gives each block more of them; this changes no bit of a row."""
    g = generator(4)
    n_in, n_out = inputs(40), 16_912
    x, weight = torch.randn(34, n_in, generator=g).to(dtype), torch.randn(n_out, n_in, generator=g).to(dtype)
    packed = ops.pack_weight(weight, "none")
    got = ops.linear(x, packed, n_out)
    assert_rounds_to(got, reference.linear(x, weight))
    assert_same_bits(got[33:], ops.linear(x[33:], packed, n_out))


@dtypes
def test_linear_handles_long_rows(dtype: torch.dtype) -> None:
    """So long that a kernel may choose tiles of their own."""
    assert_linear(dtype, "add", float32_out=False, rows=41, n_in=4_232, n_out=2_114, biased=True)


@dtypes
@pytest.mark.parametrize("epilogue, float32_out", [*((epilogue, False) for epilogue in ops.EPILOGUES), ("none", True)])
@pytest.mark.parametrize("rows, n_in, n_out, biased", LINEAR_SIZES)
def test_linear_with_int8_weights_equals_the_oracle(
    dtype: torch.dtype, epilogue: str, float32_out: bool, rows: int, n_in: int, n_out: int, biased: bool
) -> None:
    g = generator(1000 * rows + n_in)
    n_in = inputs(n_in)
    x = torch.randn(rows, n_in, generator=g).to(dtype)
    weight = torch.randint(-128, 128, (n_out, n_in), generator=g, dtype=torch.int8)
    scale = torch.rand(n_out, generator=g) / (64 * n_in**0.5)  # so that outputs are about 1
    bias = torch.randn(n_out, generator=g).to(dtype) if biased else None
    residual = torch.randn(rows, n_out, generator=g).to(dtype) if epilogue == "add" else None
    got = ops.linear(x, ops.pack_weight(weight, epilogue, scale), n_out, epilogue, bias, residual, float32_out)
    read, wide = reference.round_to_int8(x) if chosen.rounds_x else x, weight.double() * scale[:, None].double()
    expected = reference.linear(read, wide, epilogue, bias, residual, float32_out).to(got.dtype)
    assert_rounds_to(got, expected)


INT8_ROWS = {
    "the largest products": (torch.full((64,), -128, dtype=torch.int8), torch.full((64,), -3.0)),
    "alternating signs": (torch.tensor([127, -128] * 32, dtype=torch.int8), torch.tensor([-1.0, 1.0] * 32)),
    "zeros": (torch.full((64,), 55, dtype=torch.int8), torch.zeros(64)),
    "numbers too small to scale": (torch.full((64,), 55, dtype=torch.int8), torch.full((64,), 1e-40)),
    "one large number in a group": (torch.full((64,), 1, dtype=torch.int8), torch.tensor([1e30] + [1.0] * 63)),
}


@only_on_the_cpu("x is not rounded beside int8 weights")
@pytest.mark.parametrize("name", INT8_ROWS)
def test_int8_sums_are_exact_at_the_limits(name: str) -> None:
    """No sum of products overflows or saturates, on any instruction set."""
    weight, x = INT8_ROWS[name]
    got = ops.linear(x[None], ops.pack_weight(weight[None], "none", torch.ones(1)), 1)
    expected = reference.linear(reference.round_to_int8(x[None]), weight[None].double()).float()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_shows_in_every_output_of_its_row(bad: float) -> None:
    n_in = inputs(70)
    weight = ops.pack_weight(torch.zeros(5, n_in, dtype=torch.int8), "none", torch.ones(5))
    x = torch.ones(3, n_in, dtype=DTYPES[0])
    x[1, 40] = bad
    assert ops.linear(x, weight, 5).isnan().all(dim=1).tolist() == [False, True, False]


@dtypes
@pytest.mark.parametrize("half", [1, 5, 16, 17])
def test_silu_mul_handles_any_number_of_gates(dtype: torch.dtype, half: int) -> None:
    assert_linear(dtype, "silu_mul", False, 3, 40, 2 * half, biased=True)


@dtypes
def test_linear_keeps_a_nonfinite_input_in_its_own_row(dtype: torch.dtype) -> None:
    g = generator(3)
    x = torch.randn(6, inputs(37), generator=g).to(dtype)
    weight = ops.pack_weight(torch.randn(21, inputs(37), generator=g).to(dtype), "none")
    clean = ops.linear(x, weight, 21)
    x[2] = NAN
    spoilt = ops.linear(x, weight, 21)
    others = [0, 1, 3, 4, 5]
    assert bool(spoilt[2].isnan().all())
    assert_same_bits(spoilt[others], clean[others])


# rope_store_kv ----------------------------------------------------------------------------------------------------------------


def rope_table(positions: int, size: int) -> torch.Tensor:
    angle = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


@dtypes
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "q_norm"])
@pytest.mark.parametrize(
    "rows, q_heads, kv_heads, size, page_size",
    [(1, 3, 1, 64, 16), (5, 4, 4, 80, 1), (9, 8, 2, 128, 64), (40, 9, 3, 64, 1), (300, 2, 1, 16, 64)],
)
def test_rope_store_kv_equals_the_oracle_on_strided_views(
    dtype: torch.dtype, normed: bool, rows: int, q_heads: int, kv_heads: int, size: int, page_size: int
) -> None:
    g = generator(rows)
    qkv = torch.randn(rows, (q_heads + 2 * kv_heads) * size, generator=g).to(dtype)
    q, k, v = (part.unflatten(1, (-1, size)) for part in qkv.split([q_heads * size, kv_heads * size, kv_heads * size], dim=1))
    pages = rows // page_size + 4
    positions = ints(0, 97, (rows,), g)
    slots = torch.randperm(pages * page_size, generator=g)[:rows].int()
    k_cache, v_cache = (torch.full((pages, page_size, kv_heads, size), NAN, dtype=dtype) for _ in range(2))
    norms = [torch.randn(size, generator=g).to(dtype) for _ in range(2)] if normed else [None, None]
    arguments = (q, k, v, rope_table(97, size), positions, slots, k_cache, v_cache, *norms, 1e-6)
    expected_q, expected_k, expected_v = reference.rope_store_kv(*arguments)
    beside = qkv[:, q_heads * size :].clone()

    ops.rope_store_kv(*arguments)

    # An error in the last bit of the rounded norm passes through the rotation.
    atol = 3e-2 if normed and dtype == torch.bfloat16 else 2e-5
    assert_rounds_to(q.contiguous(), expected_q.contiguous(), atol=atol)
    assert_same_bits(qkv[:, q_heads * size :], beside)
    written = slots.long()
    assert_rounds_to(k_cache.flatten(0, 1)[written], expected_k.flatten(0, 1)[written], atol=atol)
    assert_same_bits(v_cache, expected_v)
    assert torch.equal(k_cache.isnan(), expected_k.isnan())


# paged_attention --------------------------------------------------------------------------------------------------------------

# (page size, head size, queries per K/V head, K/V heads). Values of axes that can interact are all combined; the full product
# would take too long.
ATTENTION_SHAPES = [
    (1, 64, 1, 2),
    (1, 80, 3, 1),
    (1, 128, 4, 2),
    (1, 64, 8, 1),
    (16, 64, 3, 3),
    (16, 80, 4, 1),
    (16, 128, 8, 1),
    (16, 80, 1, 2),
    (64, 64, 4, 1),
    (64, 80, 8, 1),
    (64, 128, 1, 1),
    (64, 128, 3, 2),
    (16, 96, 2, 2),
    (64, 256, 4, 1),
    (1, 256, 1, 1),
    (16, 64, 16, 1),
    (16, 16, 3, 1),
]
ATTENTION_SHAPES = [s for s in ATTENTION_SHAPES if s[1] in (chosen.attention_head_sizes or [s[1]])]


def assert_attention(got: torch.Tensor, expected: torch.Tensor) -> None:
    # A kernel may round softmax weights to the run dtype before it multiplies them with the values.
    assert_rounds_to(got, expected, atol=1e-2 if got.dtype == torch.bfloat16 else 1e-5)


@dtypes
@pytest.mark.parametrize("page_size, size, group, kv_heads", ATTENTION_SHAPES)
def test_paged_attention_equals_the_oracle(dtype: torch.dtype, page_size: int, size: int, group: int, kv_heads: int) -> None:
    """Prefixes with and without suffixes, and strided queries. Every KV slot without a key is NaN."""
    keys = PagedKeys([150, 3, 40], kv_heads, size, page_size, dtype, seed=page_size + size)
    row_seq = [0, 0, 0, 1, 2, 2, 2, 2]
    arguments = keys.see(row_seq, [1, 129, 150, 3, 17, 33, 40, 40], suffix=[0, 5, 0, 3, 0, 1, 7, 2])
    wide = torch.randn(len(row_seq), (group + 2) * kv_heads * size, generator=generator(group)).to(dtype)
    q = wide[:, : group * kv_heads * size].unflatten(1, (-1, size))
    expected = reference.paged_attention(q, scale=size**-0.5, **arguments)
    assert_attention(ops.paged_attention(q, scale=size**-0.5, **arguments), expected)


@dtypes
@pytest.mark.parametrize("rows", [*range(1, 10), 40, 300])
def test_paged_attention_handles_any_number_of_rows(dtype: torch.dtype, rows: int) -> None:
    keys = PagedKeys([20, 30], 1, 64, 16, dtype, seed=rows)
    row_seq = [0] * (rows // 2) + [1] * (rows - rows // 2)
    arguments = keys.see(row_seq, [1 + (7 * row) % 20 for row in range(rows)])
    q = torch.randn(rows, 3, 64, generator=generator(rows)).to(dtype)
    assert_attention(ops.paged_attention(q, scale=0.125, **arguments), reference.paged_attention(q, scale=0.125, **arguments))


@dtypes
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
def test_paged_attention_handles_many_branches_of_one_sequence(dtype: torch.dtype, size: int) -> None:
    rows = 24
    keys = PagedKeys([50], 1, size, 16, dtype, seed=size)
    arguments = keys.see([0] * rows, [20 + row for row in range(rows)], [2] * rows)
    q = torch.randn(rows, 4, size, generator=generator(size)).to(dtype)
    assert_attention(ops.paged_attention(q, scale=0.1, **arguments), reference.paged_attention(q, scale=0.1, **arguments))


@dtypes
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
def test_paged_attention_handles_many_queries_that_share_keys(dtype: torch.dtype, size: int) -> None:
    """Rows without a suffix, and more queries per K/V head than a kernel's smallest tile. A row alone gives the same bits."""
    keys = PagedKeys([150], 1, size, 16, dtype, seed=size)
    arguments = keys.see([0] * 10, [1 + 16 * row for row in range(10)])
    q = torch.randn(10, 3, size, generator=generator(size)).to(dtype)
    got = ops.paged_attention(q, scale=size**-0.5, **arguments)
    assert_attention(got, reference.paged_attention(q, scale=size**-0.5, **arguments))
    alone = arguments | {"row_seq": arguments["row_seq"][8:9], "prefix_len": arguments["prefix_len"][8:9]}
    assert_same_bits(got[8:9], ops.paged_attention(q[8:9], scale=size**-0.5, **alone))


@dtypes
def test_paged_attention_handles_prefixes_beyond_the_fine_tiles(dtype: torch.dtype) -> None:
    keys = PagedKeys([2700], 1, 64, 64, dtype, seed=5)
    arguments = keys.see([0, 0, 0, 0], [2047, 2049, 2561, 2700], suffix=[0, 0, 3, 1])
    q = torch.randn(4, 3, 64, generator=generator(5)).to(dtype)
    assert_attention(ops.paged_attention(q, scale=0.3, **arguments), reference.paged_attention(q, scale=0.3, **arguments))


@dtypes
def test_paged_attention_handles_many_sequences(dtype: torch.dtype) -> None:
    """So many that a kernel gives a block several sequences, and several of their tiles, with heads to merge in turns."""
    count = 34
    lengths = [129 + 17 * s % 150 for s in range(count)]
    keys = PagedKeys(lengths, 8, 64, 16, dtype, seed=7)
    arguments = keys.see(list(range(count)), lengths, suffix=[s % 3 for s in range(count)])
    q = torch.randn(count, 96, 64, generator=generator(7)).to(dtype)
    assert_attention(ops.paged_attention(q, scale=0.3, **arguments), reference.paged_attention(q, scale=0.3, **arguments))


@dtypes
def test_paged_attention_survives_scores_beyond_the_range_of_exp(dtype: torch.dtype) -> None:
    keys = PagedKeys([300], 1, 64, 16, dtype, seed=6)
    arguments = keys.see([0, 0], [300, 140])
    q = 40 * torch.randn(2, 1, 64, generator=generator(6)).to(dtype)
    assert_attention(ops.paged_attention(q, scale=1.0, **arguments), reference.paged_attention(q, scale=1.0, **arguments))


# move_kv ----------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(
    "path",
    [
        [0, 5, -1, -1],
        [0, 2, 3, 5],  # a slot is read before a later move overwrites it
        [0, 1, 2, 4],  # nodes that are where they belong stay there
        [0, 3, 1, -1],  # moves happen in order: the second reads what the first wrote
        [0, 4, -1, 5],  # a path ends at its first negative entry
        [-1, -1, -1, -1],
    ],
)
def test_move_kv_equals_the_oracle(dtype: torch.dtype, page_size: int, path: list[int]) -> None:
    """Two sequences; the second accepts nothing. Nodes are numbered up to 5, so paths of six entries are needed."""
    pages = -(-16 // page_size)
    kv = torch.randn(3, 2, 2 * pages, page_size, 2, 48, generator=generator(8)).to(dtype)
    table = torch.randperm(2 * pages, generator=generator(page_size)).int().view(2, pages)
    kv[0, 1].flatten(0, 1)[10] = NAN
    paths = i32([[*path, -1, -1], [-1] * 6])
    length = i32([[7, 0], [3, 0]])[:, 0]  # strided
    expected = reference.move_kv(kv, table, length, paths)
    ops.move_kv(kv, table, length, paths)
    assert_same_bits(kv, expected)


@dtypes
def test_rms_norm_reads_strided_rows(dtype: torch.dtype) -> None:
    for width in (24, 30):
        x, weight = (torch.randn(*shape, generator=generator(width)).to(dtype) for shape in ((6, width), (width,)))
        assert_same_bits(ops.rms_norm(x[1::2], weight, 1e-5), ops.rms_norm(x[1::2].contiguous(), weight, 1e-5))


@dtypes
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows, n_out", [(1, 6), (3, 40), (9, 129)])
def test_logits_are_a_linears_float32_result(dtype: torch.dtype, biased: bool, rows: int, n_out: int) -> None:
    g, n_in = generator(rows), inputs(24)
    x, weight = torch.randn(rows, n_in, generator=g).to(dtype), torch.randn(n_out, n_in, generator=g).to(dtype)
    bias = torch.randn(n_out, generator=g).to(dtype) if biased else None
    table = torch.full((rows + 2, n_out), NAN)
    ops.logits(x, ops.pack_weight(weight), bias, table[1:-1])
    assert_same_bits(table[1:-1], ops.linear(x, ops.pack_weight(weight), n_out, bias=bias, float32_out=True))
    assert table[[0, -1]].isnan().all()
