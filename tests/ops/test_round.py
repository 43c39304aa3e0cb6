"""Whole decodes built from the ops, in ops.law's tiny language: the speculation cache changes no token.

Sampled SSD equals sampled SD token for token, because a hit and a miss draft the same prefix with the same noise. Greedy SSD
equals autoregressive decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ops.backend import chosen
from ops.cases import NAN, f32, fork, i32, sample, verify_state, verify_written
from ops.law import Decoding, models, next_state
from ssd import ops

SLOTS, LOOKAHEAD, VOCABULARY = chosen.slots, 3, 8
MAX_LENGTH = chosen.length
SAMPLED = (f32([1.0, 0.7, 1.3]).repeat(SLOTS // 3), i32([0, 5, 0]).repeat(SLOTS // 3), f32([1, 0.9, 1]).repeat(SLOTS // 3))
GREEDY = (torch.zeros(SLOTS), torch.zeros(SLOTS, dtype=torch.int32), torch.ones(SLOTS))


@dataclass
class Decoded:
    tokens: Tensor  # [SLOTS, MAX_LENGTH + LOOKAHEAD + 1]
    length: Tensor  # [SLOTS]
    rounds: int
    hits: int
    hits_after_accepted: int  # the hits with k ≥ 1


def state_at(tokens: Tensor, length: Tensor) -> Tensor:
    """The language's state after the token at `length`. The prompt is one token, with state 0."""
    state = torch.zeros(len(tokens), dtype=torch.int64)
    for position in range(1, int(length.max()) + 1):
        state = torch.where(position <= length, next_state(state, tokens[:, position]), state)
    return state


def decode(lookahead: int, budget: int, settings: tuple[Tensor, Tensor, Tensor], saguaro_c: float = 1.0) -> Decoded:
    """lookahead 0: autoregressive; budget 0: plain speculative decoding; else with a cache of `budget` branches."""
    target, draft = (model.logits for model in models(Decoding((1,), VOCABULARY, draft_like_target=0.9)))
    all_slots = torch.arange(SLOTS)
    start = torch.zeros(SLOTS, dtype=torch.int32)
    running = verify_state(SLOTS, MAX_LENGTH + LOOKAHEAD + 1, start, start, torch.arange(SLOTS) + 77, MAX_LENGTH)
    running["eos"] = i32([VOCABULARY - 1])
    running["ignore_eos"][::2] = 1
    shape = (SLOTS, 2, budget + 1, lookahead)
    q_logits, q_stats = torch.full((*shape, VOCABULARY), NAN), torch.full((*shape, ops.STATS), NAN)

    def stats(logits: Tensor, c: float = 1.0) -> Tensor:
        return ops.row_stats(logits, *settings, torch.zeros(SLOTS), 2 if c < 1 else 0, c)

    def draft_after(state: Tensor, length: Tensor, half: int, address: int) -> Tensor:
        """Draft a chain [SLOTS, lookahead] after the token at `length`, and store its q at [half, address]."""
        tokens = torch.zeros(SLOTS, lookahead, dtype=torch.int32)
        for step in range(lookahead):
            logits = draft[state]
            drawn_from = stats(logits, saguaro_c)
            q_logits[:, half, address, step], q_stats[:, half, address, step] = logits, drawn_from
            tokens[:, step] = sample(logits, drawn_from, running["seed"], length + 1 + step)[:, 0]
            state = next_state(state, tokens[:, step])
        return tokens

    table = torch.zeros(2, lookahead + 1, lookahead + 1, dtype=torch.int32)
    for spec_len in range(lookahead + 1):
        for guess in range(budget):
            table[:, spec_len, guess % (spec_len + 1)] += 1
    written = {name: torch.zeros(SLOTS, dtype=torch.int32) for name in ("draft_length", "draft_last_token")}
    speculation = {
        "spec_tokens": draft_after(state_at(running["tokens"], start), start, 0, budget),
        "spec_len": torch.full((SLOTS,), lookahead, dtype=torch.int32),
        "hit": torch.zeros(SLOTS, dtype=torch.uint8),
        "q_address": torch.full((SLOTS,), budget, dtype=torch.int32),
        "bad": torch.zeros(SLOTS, dtype=torch.int32),
    }
    missed = torch.zeros(SLOTS, dtype=torch.uint8)
    rounds, hits, hits_after_accepted = 0, 0, 0
    while not bool(running["done"].all()):
        rounds += 1
        length, half = running["length"].clone(), int(running["parity"])
        states = [state_at(running["tokens"], length)]
        for step in range(lookahead):
            states.append(next_state(states[-1], speculation["spec_tokens"][:, step]))
        trunk = torch.stack(states, dim=1)

        guess, guess_k = fork(
            draft[trunk], speculation["spec_tokens"], speculation["spec_len"], table, speculation["hit"], budget
        )
        branches = torch.zeros(SLOTS, budget, lookahead, dtype=torch.int32)
        for b in range(budget):
            k = guess_k[:, b].clamp_min(0)
            state = next_state(trunk[all_slots, k.long()], guess[:, b])
            branches[:, b] = draft_after(state, length + k + 1, 1 - half, b)

        p_logits = target[trunk]
        p_stats = torch.stack([stats(p_logits[:, i].contiguous()) for i in range(lookahead + 1)], dim=1)
        q = (q_logits, q_stats) if lookahead else (None, None)
        was_done = running["done"].clone()
        ops.verify(
            p_logits, p_stats, *q, speculation["q_address"], None, speculation["spec_tokens"], speculation["spec_len"],
            parent=None, **running, **verify_written(SLOTS, lookahead + 1) | {"hit": speculation["hit"]},
        )  # fmt: skip
        accepted = running["outcome"][:, half, 0].clone()
        ops.cache_lookup(
            running["outcome"], guess, guess_k, branches, running["length"], running["last_token"], running["max_length"],
            running["done"], None, ops.NO_LIMIT, running["parity"], *written.values(), **speculation, missed=missed,
        )  # fmt: skip
        hit = speculation["hit"].bool() & ~was_done.bool()
        hits, hits_after_accepted = hits + int(hit.sum()), hits_after_accepted + int((hit & (accepted > 0)).sum())
        fallback = draft_after(state_at(running["tokens"], running["length"]), running["length"], 1 - half, budget)
        speculation["spec_tokens"][missed.bool()] = fallback[missed.bool()]
    return Decoded(running["tokens"], running["length"], rounds, hits, hits_after_accepted)


@pytest.mark.parametrize("saguaro_c", [1.0, 0.3])
def test_sampled_ssd_equals_sampled_sd_token_for_token(saguaro_c: float) -> None:
    plain, cached = (decode(LOOKAHEAD, budget, SAMPLED, saguaro_c) for budget in (0, 6))
    assert torch.equal(cached.tokens, plain.tokens)
    assert torch.equal(cached.length, plain.length)
    assert plain.hits == 0
    assert cached.hits_after_accepted > SLOTS * MAX_LENGTH // 48


def test_greedy_ssd_and_sd_equal_autoregressive_decoding() -> None:
    autoregressive, plain, cached = (decode(*how, GREEDY) for how in [(0, 0), (LOOKAHEAD, 0), (LOOKAHEAD, 6)])
    assert torch.equal(plain.length, autoregressive.length)
    assert torch.equal(cached.length, autoregressive.length)
    assert torch.equal(plain.tokens, autoregressive.tokens)
    assert torch.equal(cached.tokens, autoregressive.tokens)
    assert cached.rounds < autoregressive.rounds


def test_decoding_stops_at_the_end_of_sequence_or_at_max_length() -> None:
    decoded = decode(LOOKAHEAD, 6, SAMPLED)
    for s in range(SLOTS):
        n = int(decoded.length[s])
        ended = int(decoded.tokens[s, n]) == VOCABULARY - 1 and s % 2 == 1
        assert ended or n + 1 == MAX_LENGTH
        assert (s % 2 == 0) or (VOCABULARY - 1 not in decoded.tokens[s, 1:n].tolist())
