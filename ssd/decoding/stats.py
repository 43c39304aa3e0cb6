"""The cost of a decode, sequence by sequence."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from ssd.decoding.round import Round


@dataclass(frozen=True)
class Stats:
    """The statistics of one sequence. Times are medians over its rounds. A figure that the mode does not have is None.

    Only tokens of the completion count: in a round, the accepted draft tokens and the bonus token that the target adds after
    them. A stop string or an end-of-sequence token may cut the last round, and its bonus token with it.

    rounds: verifications after the prefill. mean_acceptance_length: tokens per round, with the bonus tokens and without the
    prefill's token; 1 in mode "ar". accepted_per_round: accepted draft tokens, without the bonus token. acceptance_rate:
    accepted over proposed tokens. hit_rate: hits over look-ups, without the first look-up, for which there are
    no guesses, and without rounds beyond the draft's context.
    hits_per_k: accepted count → (hits, look-ups). rank_counts: rank → number of next tokens with this rank among the draft's
    guesses for their accepted count; a larger budget hits higher ranks. rank_counts_whole: the part of them after speculations
    that were accepted whole. proposed_counts: speculation length → rounds.
    accepted_at: rounds that accepted at least one token, at least two, and so on. t_draft_ms: extend and branches in "ssd", the
    K draft steps in "sd". t_fallback_ms: the cost of a miss. hidden_draft_ms: the part of t_draft_ms that the verification hid.
    branches_unused: drafted branches that were not handed out. cached_tokens: tokens of the prompt that the prefix cache had
    stored. decode_tokens_per_s: without the prefill and the first token.
    """

    mode: str
    rounds: int
    mean_acceptance_length: float | None
    accepted_per_round: float
    acceptance_rate: float | None
    hit_rate: float | None
    hits_per_k: dict[int, tuple[int, int]]
    rank_counts: dict[int, int]
    rank_counts_whole: dict[int, int]
    proposed_counts: dict[int, int]
    accepted_at: list[int]
    t_verify_ms: float | None
    t_draft_ms: float | None
    t_fallback_ms: float | None
    hidden_draft_ms: float | None
    branches_unused: int
    cached_tokens: int
    decode_tokens_per_s: float | None
    time_to_first_token_s: float


@dataclass(frozen=True)
class Committed:
    """What the prefill or one round added to a completion.

    tokens: number of tokens that the completion kept. accepted: how many of them the draft had proposed; they come first, and
    at most one token of the target's own follows. proposed: number of proposed tokens. hit: whether they came from the
    speculation cache; None where there were no guesses to look up, as in the first round.
    """

    tokens: int
    accepted: int = 0
    proposed: int = 0
    hit: bool | None = None

    @property
    def origins(self) -> list[str]:
        """Where each token came from: "cache" (a prepared branch), "draft" (drafted on the spot) or "target"."""
        drafted = "cache" if self.hit else "draft"
        return [drafted] * self.accepted + ["target"] * (self.tokens - self.accepted)


def _median(values: list[float]) -> float | None:
    return median(values) if values else None


@dataclass
class SequenceStats:
    """Gathers a sequence's stats round by round."""

    arrived: float = field(default_factory=time.perf_counter)
    cached_tokens: int | None = None  # None until it is admitted
    first_token: float = 0.0
    last_token: float = 0.0
    rounds: int = 0
    accepted: int = 0
    proposed: int = 0
    branches: int = 0
    last_k: int | None = None
    per_k: dict[int, list[int]] = field(default_factory=dict)
    ranks: Counter[int] = field(default_factory=Counter)
    last_whole: bool = False  # the last speculation was accepted whole
    ranks_whole: Counter[int] = field(default_factory=Counter)  # after such a speculation
    lengths: Counter[int] = field(default_factory=Counter)
    counts: Counter[int] = field(default_factory=Counter)  # accepted count → rounds
    verify_ms: list[float] = field(default_factory=list)
    draft_ms: list[float] = field(default_factory=list)
    fallback_ms: list[float] = field(default_factory=list)
    hidden_ms: list[float] = field(default_factory=list)
    committed: list[Committed] = field(default_factory=list)  # the prefill's token, then round by round

    def admitted(self, cached: int) -> None:
        """The request has a slot. cached: number of tokens whose K/V were found in the prefix cache."""
        if self.cached_tokens is None:  # the first time; after a preemption it finds its own pages
            self.cached_tokens = cached

    def started(self) -> None:
        """The prefill has committed the first token."""
        self.committed.append(Committed(1))
        self.first_token = self.last_token = time.perf_counter()

    def add(
        self, round: Round, *, length: int, tokens: int, accepted: int, proposed: int, hit: bool, missed: bool, rank: int = -1
    ) -> None:
        """Add a round with this sequence.

        length: number of tokens whose K/V was stored before the round. tokens: number of committed tokens that the completion
        kept. accepted: how many of them the draft had proposed. missed: whether any sequence of the round missed, so that the
        round waited for a fallback. rank: see `Round.rank`; −1 where there was no look-up.
        """
        verify = round.verified.span
        after = self.last_k if round.budget and rank >= 0 else None  # the accepted count that was looked up
        self.last_token = time.perf_counter()
        self.rounds += 1
        self.accepted += accepted
        self.proposed += proposed
        self.committed.append(Committed(tokens, accepted, proposed, hit if after is not None else None))
        self.lengths[proposed] += 1
        self.counts[accepted] += 1
        if rank >= 0:
            self.ranks[rank] += 1
            self.ranks_whole[rank] += self.last_whole
        self.last_whole = accepted == proposed
        self.verify_ms.append(verify.ms)
        if round.drafting is not None:
            self.draft_ms.append(round.drafting.span.ms)
            self.hidden_ms.append(round.drafting.span.overlap_ms(verify))
        if round.budget:
            self.branches += round.branches(length)
            if round.looked_up is not None and missed:
                self.fallback_ms.append(round.looked_up.span.ms)
            if after is not None:
                hits = self.per_k.setdefault(after, [0, 0])
                hits[0] += hit
                hits[1] += 1
            self.last_k = accepted

    def summary(self, mode: str, tokens: int) -> Stats:
        """tokens: number of tokens of the completion; the first is the prefill's, the rounds committed the others."""
        hits = sum(h for h, _ in self.per_k.values())
        look_ups = sum(n for _, n in self.per_k.values())
        elapsed = self.last_token - self.first_token
        return Stats(
            mode=mode,
            rounds=self.rounds,
            mean_acceptance_length=(tokens - 1) / self.rounds if self.rounds else None,
            accepted_per_round=self.accepted / self.rounds if self.rounds else 0.0,
            acceptance_rate=self.accepted / self.proposed if self.proposed else None,
            hit_rate=hits / look_ups if look_ups else None,
            hits_per_k={k: (h, n) for k, (h, n) in sorted(self.per_k.items())},
            rank_counts=dict(sorted(self.ranks.items())),
            rank_counts_whole={rank: n for rank, n in sorted(self.ranks_whole.items()) if n},
            proposed_counts=dict(sorted(self.lengths.items())),
            accepted_at=[sum(n for k, n in self.counts.items() if k > i) for i in range(max(self.counts, default=0))],
            t_verify_ms=_median(self.verify_ms),
            t_draft_ms=_median(self.draft_ms),
            t_fallback_ms=_median(self.fallback_ms),
            hidden_draft_ms=_median(self.hidden_ms) if mode == "ssd" else None,
            branches_unused=self.branches - hits,
            cached_tokens=self.cached_tokens or 0,
            decode_tokens_per_s=(tokens - 1) / elapsed if elapsed > 0 and tokens > 1 else None,
            time_to_first_token_s=self.first_token - self.arrived,
        )
