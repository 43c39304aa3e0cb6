"""Helpers of the op tests: comparing bits, placing keys in pages, random distributions and random trees.

Imported as `ops.cases`; pytest is started with tests/ on its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import reference
from ops.backend import chosen
from ssd import ops

DTYPES = chosen.dtypes
DTYPE_NAMES = [{torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype] for dtype in DTYPES]
NAN = float("nan")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ints(low: int, high: int, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randint(low, high, shape, generator=g, dtype=torch.int32)


def i32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def f32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# Comparing --------------------------------------------------------------------------------------------------------------------

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}
_LAST_PLACE = {torch.bfloat16: 2.0**-7}  # the relative size of one unit in the last place


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(_BITS[x.dtype]) if x.dtype in _BITS else x


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert equal bit patterns: −0 differs from 0, and a NaN equals itself."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = (bits(actual) != bits(expected)).nonzero()
    assert len(different) == 0, f"{len(different)} entries differ, the first at {different[0].tolist()}"


def assert_rounds_to(actual: Tensor, expected: Tensor, atol: float = 2e-5, rtol: float = 1e-5) -> None:
    """Assert equality with the oracle up to float32 rounding; for a two-byte dtype, plus one unit in the last place."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=max(rtol, _LAST_PLACE.get(actual.dtype, 0.0)), atol=atol)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Keys in pages ----------------------------------------------------------------------------------------------------------------


class PagedKeys:
    """Keys and values of sequences in randomly ordered pages. Every KV slot without a key is NaN."""

    def __init__(
        self, lengths: list[int], heads: int, size: int, page_size: int, dtype: torch.dtype, seed: int, placement: int = 0
    ) -> None:
        """The keys depend only on `seed`. `placement` is the seed of the choice of pages and scratch slots."""
        g = generator(seed)
        self.keys = [torch.randn(n, heads, size, generator=g).to(dtype) for n in lengths]
        self.values = [torch.randn(n, heads, size, generator=g).to(dtype) for n in lengths]
        per_sequence = [-(-n // page_size) for n in lengths]
        scratch_pages = -(-sum(lengths) // page_size)
        pages = sum(per_sequence) + scratch_pages + 3
        order = torch.randperm(pages, generator=generator(seed + 7919 * (placement + 1)))
        self.page_size = page_size
        self.k_cache = torch.full((pages, page_size, heads, size), NAN, dtype=dtype)
        self.v_cache = torch.full((pages, page_size, heads, size), NAN, dtype=dtype)
        self.page_table = torch.full((len(lengths), max(per_sequence) + 1), -1, dtype=torch.int32)
        used = 0
        for s, count in enumerate(per_sequence):
            self.page_table[s, :count] = order[used : used + count]
            used += count
        kv_slots = (
            torch.arange(page_size).repeat(scratch_pages)
            + order[used : used + scratch_pages].repeat_interleave(page_size) * page_size
        )
        self._scratch = kv_slots[torch.randperm(len(kv_slots), generator=generator(seed + placement))].tolist()

    def _store(self, slots: Tensor, s: int, j: Tensor) -> None:
        self.k_cache.flatten(0, 1)[slots.long()] = self.keys[s][j]
        self.v_cache.flatten(0, 1)[slots.long()] = self.values[s][j]

    def see(self, row_seq: list[int], key_count: list[int], suffix: list[int] | None = None) -> dict[str, Tensor]:
        """The arguments with which each row sees the first key_count keys of its sequence, the last `suffix` of them as suffix.

        Only keys that a row sees are written: the paged slots of keys that all rows see as suffix stay NaN.
        """
        suffix = suffix or [0] * len(row_seq)
        prefix = [a - b for a, b in zip(key_count, suffix, strict=True)]
        for s in set(row_seq):
            j = torch.arange(max(n for r, n in zip(row_seq, prefix, strict=True) if r == s))
            self._store(self.page_table[s, j // self.page_size] * self.page_size + j % self.page_size, s, j)
        scratch: dict[tuple[int, int], int] = {}
        suffix_slots = torch.full((len(row_seq), max(suffix) + 1), -1, dtype=torch.int32)
        for row, (s, first, count) in enumerate(zip(row_seq, prefix, key_count, strict=True)):
            for j in range(first, count):
                if (s, j) not in scratch:
                    scratch[s, j] = self._scratch.pop()
                    self._store(torch.tensor(scratch[s, j]), s, torch.tensor(j))
                suffix_slots[row, j - first] = scratch[s, j]
        arguments = {
            "k_cache": self.k_cache,
            "v_cache": self.v_cache,
            "page_table": self.page_table,
            "row_seq": i32(row_seq),
            "prefix_len": i32(prefix),
        }
        if any(suffix):
            arguments |= {"suffix_slots": suffix_slots, "suffix_len": i32(suffix)}
        return arguments


# Distributions ----------------------------------------------------------------------------------------------------------------


def sampling(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same settings for all rows, in the order of row_stats' arguments."""
    return (
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
    )


def random_sampling(rows: int, g: torch.Generator, greedy_share: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    temperature = 0.3 + 1.5 * torch.rand(rows, generator=g)
    temperature[torch.rand(rows, generator=g) < greedy_share] = 0.0
    top_k = ints(0, 8, (rows,), g)
    top_p = torch.where(torch.rand(rows, generator=g) < 0.5, 1.0, 0.7 + 0.3 * torch.rand(rows, generator=g))
    min_p = torch.where(torch.rand(rows, generator=g) < 0.5, 0.0, 0.1 * torch.rand(rows, generator=g))
    return temperature, top_k, top_p, min_p


def probabilities(logits: Tensor, stats: Tensor) -> Tensor:
    """[R, V] float64 from row_stats, by the formula of csrc/common/distribution.h."""
    z, s = logits.double(), stats.double().unsqueeze(-1)
    ids = torch.arange(logits.shape[1]).expand_as(z)

    def at_or_before(value: Tensor, last_id: Tensor) -> Tensor:
        return (z > value) | ((z == value) & (ids <= last_id))

    kept = at_or_before(s[:, reference.CUT_VALUE], s[:, reference.CUT_ID])
    top = at_or_before(s[:, reference.TOP_VALUE], s[:, reference.TOP_ID])
    shift = torch.where(top, s[:, reference.LOG_C], 0.0)
    sampled = torch.exp((z - s[:, reference.MAX]) * s[:, reference.SCALE] + shift - s[:, reference.LOG_SUM])
    return torch.where(kept, torch.where(s[:, reference.SCALE] == 0, 1.0, sampled), 0.0)


def oracle_probabilities(logits: Tensor, settings: tuple[Tensor, Tensor, Tensor, Tensor], f: int = 0, c: float = 1.0) -> Tensor:
    """[R, V] float64 from the oracle."""
    columns = [x.tolist() for x in settings]
    return torch.stack([reference.distribution(row, *(x[i] for x in columns), f, c) for i, row in enumerate(logits)])


# Trees ------------------------------------------------------------------------------------------------------------------------


def tree_parents(shape: tuple[int, ...]) -> list[int]:
    """Parents in breadth-first order. Every node at depth d has shape[d] children; (1, 1, 1) is a chain of three."""
    parents, level = [-1], [0]
    for children in shape:
        following = []
        for node in level:
            for _ in range(children):
                following.append(len(parents))
                parents.append(node)
        level = following
    return parents


def random_parents(nodes: int, max_children: int, g: torch.Generator) -> list[int]:
    parents = [-1]
    while len(parents) < nodes:
        node = int(torch.randint(0, len(parents), (), generator=g))
        if parents.count(node) < max_children:
            parents.append(node)
    return parents


def children_of(parents: list[int], node: int) -> list[int]:
    return [i for i in range(1, len(parents)) if parents[i] == node]


# Tables of `verify` -----------------------------------------------------------------------------------------------------------


def verify_state(
    slots: int, width: int, length: Tensor, last_token: Tensor, seed: Tensor, max_length: int | Tensor = 1 << 20
) -> dict[str, Tensor]:
    """The tables of running sequences that verify reads and writes, with nothing that would end a sequence."""
    tokens = torch.full((slots, width), -7, dtype=torch.int32)
    tokens[torch.arange(slots), length.long()] = last_token
    return {
        "parity": i32([0]),
        "seed": seed,
        "eos": torch.empty(0, dtype=torch.int32),
        "ignore_eos": torch.zeros(slots, dtype=torch.uint8),
        "max_length": torch.full((slots,), max_length, dtype=torch.int32) if isinstance(max_length, int) else max_length,
        "tokens": tokens,
        "length": length.clone(),
        "last_token": last_token.clone(),
        "done": torch.zeros(slots, dtype=torch.uint8),
        "outcome": torch.full((slots, 2, 2), -9, dtype=torch.int32),
    }


def verify_written(slots: int, nodes: int, newest: int | None = None) -> dict[str, Tensor]:
    """More arguments of verify: what it writes for the host, and what it reports. newest: tokens in a report."""
    return {
        "hit": torch.zeros(slots, dtype=torch.uint8),
        "bad": torch.zeros(slots, dtype=torch.int32),
        "path": torch.full((slots, nodes), -9, dtype=torch.int32),
        "report": torch.full((slots, 6 + (newest or nodes)), -9, dtype=torch.int32),
    }


# Ops that write their results, as functions that return them ------------------------------------------------------------------


def sample(logits: Tensor, stats: Tensor, seed: Tensor, position: Tensor, m: int = 1, id_of: Tensor | None = None) -> Tensor:
    """[R, m]. position: [R], of the drawn tokens."""
    tokens = torch.full((len(seed), len(logits) // max(1, len(seed)) * m), -9, dtype=torch.int32, device=logits.device)
    ops.sample(logits, stats, seed, position - 1, tokens, m, id_of)
    return tokens.view(len(logits), m)


def fork(
    logits: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    table: Tensor,
    hit: Tensor,
    budget: int,
    id_of: Tensor | None = None,
    op: Callable[..., None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(guess, guess_k), [S, B] each. op: another implementation of `ops.fork`."""
    guess, guess_k = (torch.full((len(logits), budget), -9, dtype=torch.int32) for _ in range(2))
    (op or ops.fork)(logits, spec_tokens, spec_len, table, hit, guess, guess_k, id_of)
    return guess, guess_k


def ngram_propose(tokens: Tensor, length: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """(spec_tokens [S, K], spec_len [S]) where all slots miss and have room for K tokens."""
    slots = len(tokens)
    spec_tokens = torch.full((slots, lookahead), -9, dtype=torch.int32)
    spec_len, q_address = torch.full((slots,), lookahead, dtype=torch.int32), torch.full((slots,), -9, dtype=torch.int32)
    ops.ngram_propose(tokens, length, torch.ones(slots, dtype=torch.uint8), spec_tokens, spec_len, q_address)
    assert q_address.tolist() == [-1] * slots
    return spec_tokens, spec_len


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
