"""Compares any implementation of fork with the oracle: ours, and the mutant of test_mutants.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

import reference
from ops import cases
from ops.cases import generator, ints


def assert_fork(
    fork: Callable[..., object],
    seed: int,
    lookahead: int,
    vocabulary: int,
    budget: int,
    levels: int,
    trimmed: bool = False,
    slots: int = 12,
) -> None:
    g = generator(seed)
    logits = ints(0, levels, (slots, lookahead + 1, vocabulary), g).float()
    id_of = (torch.randperm(3 * vocabulary, generator=g)[:vocabulary].sort().values.int()) if trimmed else None
    known = id_of if id_of is not None else torch.arange(vocabulary, dtype=torch.int32)
    spec_tokens = known[ints(0, vocabulary, (slots, lookahead), g).long()]
    if trimmed:  # the n-gram fallback may propose a token outside the draft's vocabulary
        spec_tokens[::3] = 3 * vocabulary
    spec_len, hit = ints(0, lookahead + 1, (slots,), g), ints(0, 2, (slots,), g).to(torch.uint8)
    table = torch.zeros(2, lookahead + 1, lookahead + 1, dtype=torch.int32)
    for after in range(2):
        for length in range(lookahead + 1):
            for k in ints(0, length + 1, (budget,), g).tolist():
                table[after, length, k] += 1
    guess, guess_k = cases.fork(logits, spec_tokens, spec_len, table, hit, budget, id_of, op=fork)
    for s in range(slots):
        length = int(spec_len[s])
        fan_out = table[int(hit[s]), length].tolist()
        expected = reference.fork(
            logits[s], spec_tokens[s].tolist(), length, fan_out, None if id_of is None else id_of.tolist()
        )
        assert list(zip(guess_k[s].tolist(), guess[s].tolist(), strict=True)) == expected, f"slot {s}"
