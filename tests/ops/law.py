"""Decodes a tiny language with the ops alone, and compares the distribution of its tokens with the target's, enumerated
exactly.

In the language the next token's distribution depends on all tokens before it, through a rolling hash that picks a row of a
random table. The draft is a similar table. A decode runs rounds of sample (the draft's proposals) and verify until every slot
has committed three tokens. Each slot is one draw, with its own seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ops.backend import chosen
from ops.cases import (
    NAN,
    children_of,
    generator,
    i32,
    oracle_probabilities,
    sample,
    sampling,
    tree_parents,
    verify_state,
    verify_written,
)
from ops.statistics import chi_square_p
from ssd import ops

DRAWS = chosen.draws
CHUNK = 50_000  # slots per call
FIRST = 3  # the number of tokens whose joint law is checked
STATES = 97  # rows of a table: the possible hashes of a prefix


@dataclass(frozen=True)
class Decoding:
    """A kind of decoding. shape: a node at depth d has shape[d] children ((1, 1, 1) is a chain of three)."""

    shape: tuple[int, ...]
    vocabulary: int = 7
    processing: tuple[float, int, float, float] = (1.0, 0, 1.0, 0.0)  # temperature, top_k, top_p, min_p of both models
    saguaro_c: float = 1.0
    drawn: bool = True  # False: proposed by a rule (δ), like n-grams
    draft_like_target: float = field(default=0.6, repr=False)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        drawing = f"C={self.saguaro_c}" if self.drawn else "undrawn"
        return f"{shape}-V={self.vocabulary}-{drawing}{'' if self.processing[0] == 1.0 else '-processed'}"


def next_state(state: Tensor, token: Tensor) -> Tensor:
    return (7 * state + token.clamp_min(0) + 1) % STATES


@dataclass
class Model:
    logits: Tensor  # [STATES, V]
    stats: Tensor  # [STATES, STATS]


@cache
def models(decoding: Decoding) -> tuple[Model, Model]:
    """Returns (target, draft)."""
    g = generator(decoding.vocabulary)
    p = 1.5 * torch.randn(STATES, decoding.vocabulary, generator=g)
    q = decoding.draft_like_target * p + torch.randn(STATES, decoding.vocabulary, generator=g)
    settings = sampling(STATES, *decoding.processing)
    return Model(p, ops.row_stats(p, *settings)), Model(q, ops.row_stats(q, *settings, 2, decoding.saguaro_c))


def target_law(decoding: Decoding) -> Tensor:
    """[V ** FIRST] float64: the joint law of the first tokens, by the chain rule."""
    p = oracle_probabilities(models(decoding)[0].logits, sampling(STATES, *decoding.processing))
    law, state = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for _ in range(FIRST):
        law = (law[:, None] * p[state]).flatten()
        state = next_state(state[:, None], torch.arange(decoding.vocabulary)).flatten()
    return law


def propose(draft: Model, decoding: Decoding, state: Tensor, seed: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (tokens [slots, nodes − 1], the language's state after every node [slots, nodes])."""
    parents = tree_parents(decoding.shape)
    tokens = torch.empty(len(state), len(parents) - 1, dtype=torch.int32)
    states = torch.empty(len(state), len(parents), dtype=torch.int64)
    states[:, 0] = state
    depth = [0] * len(parents)
    for node in range(len(parents)):
        children = children_of(parents, node)
        if not children:
            continue
        logits, stats = draft.logits[states[:, node]], draft.stats[states[:, node]]
        if decoding.drawn:
            drawn = sample(logits, stats, seed, length + depth[node] + 1, len(children))
        else:
            drawn = logits.topk(len(children), dim=1).indices.int()
        for rank, child in enumerate(children):
            depth[child] = depth[node] + 1
            tokens[:, child - 1] = drawn[:, rank]
            states[:, child] = next_state(states[:, node], drawn[:, rank])
    return tokens, states


def decode(verify: Callable[..., None], decoding: Decoding, seed: Tensor) -> Tensor:
    """The first tokens of every seed's decode, [slots, FIRST] int32."""
    target, draft = models(decoding)
    parents = i32(tree_parents(decoding.shape))
    nodes = len(parents)
    length = torch.zeros(len(seed), dtype=torch.int32)
    decoded = torch.zeros(len(seed), FIRST + len(decoding.shape) + 1, dtype=torch.int32)
    states = torch.zeros(len(seed), dtype=torch.int64)
    chain = max(decoding.shape) == 1
    for turn in range(FIRST):
        going = (length < FIRST).nonzero().flatten()
        n, seeds = length[going], seed[going]
        tokens, states_after = propose(draft, decoding, states[going], seeds, n)
        inner = states_after[:, : nodes - 1]
        q_logits, q_stats = (torch.full((len(going), 2, 1, nodes - 1, size), NAN) for size in (decoding.vocabulary, ops.STATS))
        q_logits[:, turn % 2, 0], q_stats[:, turn % 2, 0] = draft.logits[inner], draft.stats[inner]
        slots = verify_state(len(going), decoded.shape[1], n, decoded[going, n.long()], seeds)
        slots["parity"] = i32([turn % 2])
        slots["tokens"] = decoded[going]
        verify(
            target.logits[states_after], target.stats[states_after], q_logits, q_stats,
            torch.full((len(going),), 0 if decoding.drawn else -1, dtype=torch.int32), None,
            tokens, torch.full((len(going),), nodes - 1, dtype=torch.int32),
            parent=None if chain else parents.expand(len(going), -1), **slots, **verify_written(len(going), nodes),
        )  # fmt: skip
        for step in range(1, len(decoding.shape) + 2):
            at = (n + step).clamp_max(decoded.shape[1] - 1).long()
            following = next_state(states[going], slots["tokens"].gather(1, at[:, None])[:, 0])
            states[going] = torch.where(n + step <= slots["length"], following, states[going])
        decoded[going], length[going] = slots["tokens"], slots["length"]
    return decoded[:, 1 : FIRST + 1]


def law_p_value(verify: Callable[..., None], decoding: Decoding, draws: int = DRAWS) -> float:
    """The p-value of the first three tokens, if `verify` keeps the target's joint law."""
    base = 1_000_003 * (decoding.vocabulary + 10 * len(tree_parents(decoding.shape)))
    tokens = torch.cat(
        [decode(verify, decoding, torch.arange(start, min(start + CHUNK, draws)) + base) for start in range(0, draws, CHUNK)]
    )
    powers = decoding.vocabulary ** torch.arange(FIRST - 1, -1, -1)
    return chi_square_p((tokens.long() * powers).sum(1), target_law(decoding))
