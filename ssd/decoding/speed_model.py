"""The speed that each mode should reach, from measured times and rates (arXiv 2603.03251, Theorem 7, plus one shared memory).

Times are in seconds. T_v and T_d are measured while the other role runs too; T_b, a fallback of K draft steps, is measured
alone.
"""

from __future__ import annotations

from dataclasses import dataclass


def expected_tokens(spec_len: int, acceptance: float) -> float:
    """Expected tokens that a round commits: (1 − α^(L+1)) / (1 − α) for a per-token acceptance α."""
    if acceptance >= 1:
        return spec_len + 1.0
    return float((1 - acceptance ** (spec_len + 1)) / (1 - acceptance))


def ar_tokens_per_s(t_verify: float) -> float:
    """t_verify: the time of a pass of one row."""
    return 1 / t_verify


def sd_tokens_per_s(tokens: float, t_verify: float, t_draft_steps: float) -> float:
    """tokens: number of tokens that a round commits. t_verify: T_v, measured alone. t_draft_steps: time of K draft steps."""
    return tokens / (t_verify + t_draft_steps)


@dataclass(frozen=True)
class SsdModel:
    """SSD's rounds.

    p_hit: the chance of a hit, for one sequence. tokens_hit, tokens_miss: tokens committed by a round whose speculation came
    from the cache, or from the fallback. memory_s: where both roles share a memory, the least time of a round's reads: (bytes_v
    + bytes_d) / bandwidth.
    """

    p_hit: float
    tokens_hit: float
    tokens_miss: float
    t_verify: float
    t_draft: float
    t_fallback: float
    batch: int = 1
    memory_s: float = 0.0

    def tokens_per_s(self) -> float:
        """Tokens per second of one sequence. Every sequence of a batch waits for the fallback unless all of them hit."""
        round_hit = max(self.t_verify, self.t_draft, self.memory_s)
        round_s = round_hit + (1 - self.p_hit**self.batch) * self.t_fallback
        return (self.p_hit * self.tokens_hit + (1 - self.p_hit) * self.tokens_miss) / round_s
