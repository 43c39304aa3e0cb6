"""How the budget of branches is shared among accepted counts (arXiv 2603.03251, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ACCEPTANCE = 0.6  # the prior of a token's acceptance: between a draft made of the target's own layers and a distilled one
DECAY = 1.0  # the prior of r in 1 − h(F) = c·F^(−r), h the chance that the next token is among F guesses


def geometric(lookahead: int, budget: int, acceptance: float = ACCEPTANCE, decay: float = DECAY) -> list[int]:
    """Theorem 12: F_k = F_0·α^(k/(1+r)) for k < K, and that times (1 − α)^(−1/(1+r)) for k = K, scaled and rounded to sum to budget.

    Rounding goes to the largest remainder, ties to the smaller k. Returns lookahead + 1 numbers.
    """
    share = [acceptance ** (k / (1 + decay)) for k in range(lookahead + 1)]
    share[-1] *= (1 - acceptance) ** (-1 / (1 + decay))
    exact = [budget * s / sum(share) for s in share]
    counts = [int(e) for e in exact]
    by_remainder = sorted(range(lookahead + 1), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: budget - sum(counts)]:
        counts[k] += 1
    return counts


def tables(fan_out: str | Sequence[int], lookahead: int, budget: int) -> Tensor:
    """The table `ops.fork` reads: [2, K+1, K+1] int32 by (after a miss or a hit, spec_len, k), each row summing to budget.

    An explicit list keeps its numbers where the speculation is shorter, and gives the rest to its last outcome.
    """
    rows = []
    for length in range(lookahead + 1):
        if isinstance(fan_out, str):
            row = geometric(length, budget)
        else:
            row = [*fan_out[:length], budget - sum(fan_out[:length])]
        rows.append(row + [0] * (lookahead - length))
    return torch.tensor([rows, rows], dtype=torch.int32)
