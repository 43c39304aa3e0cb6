"""Row, thread and placement invariance, bit for bit. Greedy AR = SD = SSD and sampled SSD = SD rest on it.

A row's result may depend neither on the other rows of the call, nor on the number of threads, nor on the KV slots of its keys.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ops import cases
from ops.backend import chosen, inputs, only_on_the_cpu
from ops.cases import (
    DTYPE_NAMES,
    DTYPES,
    NAN,
    PagedKeys,
    assert_same_bits,
    generator,
    i32,
    ints,
    random_parents,
    random_sampling,
    threads,
    verify_state,
    verify_written,
)
from ssd import ops

MANY = chosen.rows

seeds = st.integers(0, 2**20)


@dataclass
class Rows:
    """An op over a pool of MANY rows: `run(index)` calls it on those rows and returns its outputs, row by row."""

    run: Callable[[Tensor], list[Tensor]]
    sequence: Tensor | None = None  # each row's sequence, if the op has sequences; rows of one sequence stay adjacent

    def arrange(self, index: Tensor) -> Tensor:
        return index if self.sequence is None else index[self.sequence[index].argsort(stable=True)]


def embed(g: torch.Generator, dtype: torch.dtype) -> Rows:
    ids, table = ints(-2, 40, (MANY,), g), torch.randn(37, 21, generator=g).to(dtype)
    return Rows(lambda index: [ops.embed(ids[index], table)])


def rms_norm(g: torch.Generator, dtype: torch.dtype) -> Rows:
    width = int(ints(1, 200, (), g))
    x, weight = torch.randn(MANY, width, generator=g).to(dtype), torch.randn(width, generator=g).to(dtype)
    return Rows(lambda index: [ops.rms_norm(x[index], weight, 1e-5)])


def linear(g: torch.Generator, dtype: torch.dtype) -> Rows:
    n_in, n_out = inputs(int(ints(1, 260, (), g))), 2 * int(ints(1, 60, (), g))
    epilogue, float32_out = ops.EPILOGUES[int(ints(0, len(ops.EPILOGUES), (), g))], bool(ints(0, 2, (), g))
    x = torch.randn(MANY, n_in, generator=g).to(dtype)
    weight = ops.pack_weight(torch.randn(n_out, n_in, generator=g).to(dtype), epilogue)
    bias = torch.randn(n_out, generator=g).to(dtype)
    residual = torch.randn(MANY, n_out, generator=g).to(dtype)

    def run(index: Tensor) -> list[Tensor]:
        added = residual[index] if epilogue == "add" else None
        return [ops.linear(x[index], weight, n_out, epilogue, bias, added, float32_out)]

    return Rows(run)


def linear_int8(g: torch.Generator, dtype: torch.dtype) -> Rows:
    n_in, n_out = inputs(int(ints(1, 260, (), g))), 2 * int(ints(1, 60, (), g))
    epilogue = ("none", "silu_mul")[int(ints(0, 2, (), g))]
    x = torch.randn(MANY, n_in, generator=g).to(dtype)
    weight = ops.pack_weight(ints(-128, 128, (n_out, n_in), g).to(torch.int8), epilogue, torch.rand(n_out, generator=g))
    return Rows(lambda index: [ops.linear(x[index], weight, n_out, epilogue)])


def rope_store_kv(g: torch.Generator, dtype: torch.dtype) -> Rows:
    q, k, v = (torch.randn(MANY, heads, 80, generator=g).to(dtype) for heads in (3, 1, 1))
    cos_sin = torch.randn(64, 80, generator=g)
    norms = [torch.randn(80, generator=g).to(dtype) for _ in range(2)]
    positions, slots = ints(0, 64, (MANY,), g), torch.randperm(20 * 16, generator=g)[:MANY].int()

    def run(index: Tensor) -> list[Tensor]:
        rotated = q[index]
        k_cache, v_cache = (torch.full((20, 16, 1, 80), NAN, dtype=dtype) for _ in range(2))
        ops.rope_store_kv(rotated, k[index], v[index], cos_sin, positions[index], slots[index], k_cache, v_cache, *norms, 1e-6)
        written = slots[index].long()
        return [rotated, k_cache.flatten(0, 1)[written], v_cache.flatten(0, 1)[written]]

    return Rows(run)


def paged_attention(g: torch.Generator, dtype: torch.dtype) -> Rows:
    lengths = [300, 40, 140]
    keys = PagedKeys(lengths, 1, 64, 16, dtype, seed=int(ints(0, 1000, (), g)))
    row_seq = ints(0, 3, (MANY,), g).sort().values
    count = [int(ints(1, lengths[s] + 1, (), g)) for s in row_seq.tolist()]
    suffix = [int(ints(0, min(n, 3) + 1, (), g)) for n in count]
    seen = keys.see(row_seq.tolist(), count, suffix)
    q = torch.randn(MANY, 4, 64, generator=g).to(dtype)
    by_row = ("row_seq", "prefix_len", "suffix_slots", "suffix_len")

    def run(index: Tensor) -> list[Tensor]:
        arguments = {name: x[index] if name in by_row else x for name, x in seen.items()}
        return [ops.paged_attention(q[index], scale=0.125, **arguments)]

    return Rows(run, row_seq)


def row_stats(g: torch.Generator, dtype: torch.dtype) -> Rows:
    logits = (4 * torch.randn(MANY, int(ints(1, 300, (), g)), generator=g)).to(dtype).float()
    settings = random_sampling(MANY, g)
    return Rows(lambda index: [ops.row_stats(logits[index], *(x[index] for x in settings), 3, 0.3)])


def sample(g: torch.Generator, dtype: torch.dtype) -> Rows:
    logits = (2 * torch.randn(MANY, int(ints(1, 300, (), g)), generator=g)).to(dtype).float()
    stats = ops.row_stats(logits, *random_sampling(MANY, g))
    seed, position = torch.randint(0, 2**62, (MANY,), generator=g), ints(0, 99, (MANY,), g)
    return Rows(lambda index: [cases.sample(logits[index], stats[index], seed[index], position[index], 3)])


def fork(g: torch.Generator, dtype: torch.dtype) -> Rows:
    logits = torch.randn(MANY, 4, 29, generator=g).to(dtype).float()
    spec_tokens, spec_len = ints(0, 29, (MANY, 3), g), ints(0, 4, (MANY,), g)
    table = torch.zeros(2, 4, 4, dtype=torch.int32)
    table[:, :, 0] = 6
    table[1, 3] = i32([2, 1, 1, 2])
    hit = ints(0, 2, (MANY,), g).to(torch.uint8)
    return Rows(lambda index: list(cases.fork(logits[index], spec_tokens[index], spec_len[index], table, hit[index], 6)))


def verify(g: torch.Generator, dtype: torch.dtype) -> Rows:
    nodes, vocabulary = 6, 17
    logits = torch.randn(MANY, vocabulary, generator=g).to(dtype).float()
    stats = ops.row_stats(logits, *random_sampling(MANY, g))
    p_row, q_row = (ints(0, MANY, (MANY, *shape), g).long() for shape in [(nodes,), (2, 3, nodes)])
    p_logits, p_stats, q_logits, q_stats = logits[p_row], stats[p_row], logits[q_row], stats[q_row]
    parent = i32([random_parents(nodes, 3, g) for _ in range(MANY)])
    spec_tokens, spec_len = ints(0, vocabulary, (MANY, nodes - 1), g), ints(0, nodes, (MANY,), g)
    q_address, seed = ints(-1, 3, (MANY,), g), torch.randint(0, 2**62, (MANY,), generator=g)
    length, last_token = ints(1, 9, (MANY,), g), ints(0, vocabulary, (MANY,), g)

    def run(index: Tensor) -> list[Tensor]:
        state = verify_state(len(index), 20, length[index], last_token[index], seed[index], max_length=11)
        state["eos"] = i32([3])
        written = verify_written(len(index), nodes)
        ops.verify(
            p_logits[index], p_stats[index], q_logits[index], q_stats[index], q_address[index], None,
            spec_tokens[index], spec_len[index], parent=parent[index], **state, **written,
        )  # fmt: skip
        return [
            written["path"],
            written["report"],
            *(state[name] for name in ("tokens", "length", "last_token", "done", "outcome")),
        ]

    return Rows(run)


def rank_outcomes(g: torch.Generator, dtype: torch.dtype) -> Rows:
    logits, outcome = torch.randn(MANY, 4, 29, generator=g).to(dtype).float(), ints(0, 4, (MANY, 2, 2), g)
    tables = [ints(0, 29, (MANY, 3), g), ints(0, 4, (MANY,), g), *(ints(0, 2, (MANY,), g).to(torch.uint8) for _ in range(2))]
    tables.append(ints(0, 9, (MANY,), g))  # lengths

    def run(index: Tensor) -> list[Tensor]:
        seen = torch.zeros(len(index), 4, dtype=torch.int32)
        ops.rank_outcomes(logits[index], outcome[index], i32([1]), *(x[index] for x in tables), None, 6, 7, seen)
        return [seen]

    return Rows(run)


def cache_lookup(g: torch.Generator, dtype: torch.dtype) -> Rows:
    outcome, branch_tokens = ints(0, 3, (MANY, 2, 2), g), ints(0, 99, (MANY, 5, 4), g)
    guess, guess_k = ints(0, 3, (MANY, 5), g), ints(-1, 3, (MANY, 5), g)
    state = [ints(0, 20, (MANY,), g) for _ in range(3)]  # length, last_token, max_length
    done = ints(0, 2, (MANY,), g).to(torch.uint8)

    def run(index: Tensor) -> list[Tensor]:
        rows = (len(index),)
        written = [torch.zeros(*rows, *more, dtype=torch.int32) for more in [(), (), (4,), ()]]
        written += [torch.zeros(rows, dtype=torch.uint8) for _ in range(2)]
        written += [torch.zeros(rows, dtype=torch.int32) for _ in range(2)]
        ops.cache_lookup(
            outcome[index], guess[index], guess_k[index], branch_tokens[index], *(x[index] for x in state),
            done[index], None, 15, i32([1]), *written,
        )  # fmt: skip
        return written

    return Rows(run)


def ngram_propose(g: torch.Generator, dtype: torch.dtype) -> Rows:
    tokens, length = ints(0, 3, (MANY, 60), g), ints(0, 60, (MANY,), g)
    return Rows(lambda index: list(cases.ngram_propose(tokens[index], length[index], 4)))


POOLS = [
    embed, rms_norm, linear, rope_store_kv, paged_attention, row_stats, sample, fork, verify, rank_outcomes,
    cache_lookup, ngram_propose, linear_int8,
]  # fmt: skip
every_op = pytest.mark.parametrize("pool", POOLS, ids=[pool.__name__ for pool in POOLS])


@every_op
@given(
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    rows=st.sampled_from([n for n in (1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 255, 257) if n < MANY]),
)
def test_a_row_does_not_depend_on_the_other_rows(
    pool: Callable[[torch.Generator, torch.dtype], Rows], seed: int, dtype: torch.dtype, rows: int
) -> None:
    g = generator(seed)
    case = pool(g, dtype)
    everything = case.run(torch.arange(MANY))
    index = case.arrange(torch.randperm(MANY, generator=g)[:rows])
    for alone, together in zip(case.run(index), everything, strict=True):
        assert_same_bits(alone, together[index])


@only_on_the_cpu("has no number of threads to choose")
@every_op
@given(seed=seeds, dtype=st.sampled_from(DTYPES), rows=st.sampled_from([1, 5, 40, MANY]))
def test_a_row_does_not_depend_on_the_number_of_threads(
    pool: Callable[[torch.Generator, torch.dtype], Rows], seed: int, dtype: torch.dtype, rows: int
) -> None:
    case = pool(generator(seed), dtype)
    with threads(1):
        alone = case.run(torch.arange(rows))
    with threads(2):
        shared = case.run(torch.arange(rows))
    for one, two in zip(alone, shared, strict=True):
        assert_same_bits(one, two)


@only_on_the_cpu("ops are called from one thread here")
@pytest.mark.parametrize("pool", [linear, paged_attention, verify], ids=lambda pool: pool.__name__)
def test_a_row_does_not_depend_on_calls_from_another_thread(
    pool: Callable[[torch.Generator, torch.dtype], Rows],
) -> None:
    """The draft's thread and the target's call the same ops at the same time."""
    cases = [pool(generator(seed), torch.bfloat16) for seed in (1, 2)]
    rows = torch.arange(MANY)
    expected = [case.run(rows) for case in cases]

    def repeat(case: Rows) -> list[list[Tensor]]:
        with threads(2):
            return [case.run(rows) for _ in range(20)]

    with ThreadPoolExecutor(2) as executor:
        for results, alone in zip(executor.map(repeat, cases), expected, strict=True):
            for together in results:
                for one, two in zip(alone, together, strict=True):
                    assert_same_bits(two, one)


# The placement of keys --------------------------------------------------------------------------------------------------------


def attend(keys: PagedKeys, q: Tensor, rows: list[int], counts: list[int], suffix: list[int] | None = None) -> Tensor:
    return ops.paged_attention(q, scale=0.2, **keys.see(rows, counts, suffix))


@given(
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    count=st.one_of(st.integers(1, 300), st.sampled_from([127, 128, 129, 255, 256, 257])),
    tail=st.integers(1, 140),
    page_size=st.sampled_from([1, 16, 64]),
    group=st.sampled_from([1, 3, 8]),
)
def test_moving_keys_from_prefix_to_suffix_changes_no_bit(
    seed: int, dtype: torch.dtype, count: int, tail: int, page_size: int, group: int
) -> None:
    keys = PagedKeys([count], 1, 64, page_size, dtype, seed)
    q = torch.randn(1, group, 64, generator=generator(seed)).to(dtype)
    suffixed = attend(keys, q, [0], [count], [min(tail, count)])
    assert_same_bits(suffixed, attend(keys, q, [0], [count]))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
@pytest.mark.parametrize("count", [2047, 2048, 2049, 2559, 2560, 2561, 3073])
def test_suffix_equals_prefix_across_the_coarse_tile_cuts(dtype: torch.dtype, count: int) -> None:
    keys = PagedKeys([count], 1, 64, 64, dtype, seed=count)
    q = torch.randn(1, 3, 64, generator=generator(count)).to(dtype)
    suffixed = [attend(keys, q, [0], [count], [tail]) for tail in (600, 65, 2, 1)]
    prefixed = attend(keys, q, [0], [count])
    for out in suffixed:
        assert_same_bits(out, prefixed)


@given(
    seed=seeds,
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 400),
    page_size=st.sampled_from([1, 2, 16, 64, 128]),
    placement=st.integers(1, 100),
)
def test_neither_page_size_nor_page_order_changes_a_bit(
    seed: int, dtype: torch.dtype, count: int, page_size: int, placement: int
) -> None:
    q = torch.randn(2, 3, 80, generator=generator(seed)).to(dtype)
    counts = [count, max(1, count // 2)]
    usual, other = (
        attend(PagedKeys([count], 1, 80, size, dtype, seed, where), q, [0, 0], counts, [0, 1])
        for size, where in [(16, 0), (page_size, placement)]
    )
    assert_same_bits(other, usual)


@given(seed=seeds, dtype=st.sampled_from(DTYPES), padding=st.integers(0, 5))
def test_the_width_of_the_suffix_table_changes_no_bit(seed: int, dtype: torch.dtype, padding: int) -> None:
    keys = PagedKeys([70], 1, 64, 16, dtype, seed)
    q = torch.randn(2, 3, 64, generator=generator(seed)).to(dtype)
    seen = keys.see([0, 0], [70, 33], [4, 2])
    usual = ops.paged_attention(q, scale=0.2, **seen)
    seen["suffix_slots"] = torch.nn.functional.pad(seen["suffix_slots"], (0, padding), value=-1)
    assert_same_bits(ops.paged_attention(q, scale=0.2, **seen), usual)
