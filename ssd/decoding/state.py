"""The device-resident tables of the running sequences: one row per sequence slot.

A round is a few programs over these tables. The host fills a row when it admits a request, and reads tokens and lengths after
the rounds. The first dimension of a table is the slot, and `first(n)` gives the same tables cut to the first n slots: a smaller
batch is a smaller program. A free slot is a done slot: its rows write to the null page and append nothing.

Length n means that the K/V of n tokens are stored; the last committed token is at position n and not yet stored.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ssd import ops
from ssd.kv.cache import PAGE_SIZE, Rows
from ssd.options import SamplingParams, SpeculationOptions


class SlotTables:
    """A dataclass of tensors whose first dimension is the slot, except those named in `_shared`."""

    _shared: tuple[str, ...] = ()

    def first(self, n: int) -> Self:
        """The tables of slots 0..n−1, as views."""
        return self._cut(slice(n))

    def only(self, slot: int) -> Self:
        """The tables of one slot, as views."""
        return self._cut(slice(slot, slot + 1))

    def by_slot(self) -> list[Tensor]:
        """The tables with a row per slot, in the order of the fields."""
        return [getattr(self, f.name) for f in fields(self) if f.name not in self._shared]  # type: ignore[arg-type]

    def copy_from(self, other: Self) -> None:
        """Copy the rows of `other`, which has as many slots."""
        for destination, source in zip(self.by_slot(), other.by_slot(), strict=True):
            destination.copy_(source)

    def _cut(self, slots: slice) -> Self:
        tables = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v if k in self._shared or v is None else v[slots] for k, v in tables.items()})


@dataclass
class SequenceState(SlotTables):
    """The committed part of each sequence, and its request's sampling parameters."""

    tokens: Tensor  # [S, N] int32, prompt and output
    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    max_length: Tensor  # [S] int32, tokens at which the sequence is finished
    done: Tensor  # [S] uint8, 1 at the end of the sequence, ops.FAILED where the target has no next token
    page_table: Tensor  # [S, P] int32, of both models
    outcome: Tensor  # [S, 2, 2] int32 by parity: (accepted count, next token); in a chain the count is the node, see `Branches`
    seed: Tensor  # [S] int64
    temperature: Tensor  # [S] float32
    top_k: Tensor  # [S] int32
    top_p: Tensor  # [S] float32
    min_p: Tensor  # [S] float32
    ignore_eos: Tensor  # [S] uint8
    eos: Tensor  # [E] int32

    _shared = ("eos",)

    @classmethod
    def allocate(cls, slots: int, capacity: int, pages: int, eos: tuple[int, ...], device: torch.device) -> SequenceState:
        """capacity: number of tokens that a row holds. pages: number of K/V pages that a row names."""

        def table(*shape: int, dtype: torch.dtype = torch.int32, fill: float = 0) -> Tensor:
            return torch.full((slots, *shape), fill, dtype=dtype, device=device)

        return cls(
            tokens=table(capacity),
            length=table(),
            last_token=table(),
            max_length=table(),
            done=table(dtype=torch.uint8, fill=1),
            page_table=table(pages),
            outcome=table(2, 2, fill=-1),
            seed=table(dtype=torch.int64),
            temperature=table(dtype=torch.float32),
            top_k=table(),
            top_p=table(dtype=torch.float32, fill=1),
            min_p=table(dtype=torch.float32),
            ignore_eos=table(dtype=torch.uint8),
            eos=torch.tensor(eos, dtype=torch.int32, device=device),
        )

    def fill(self, slot: int, length: int, last_token: int, params: SamplingParams, seed: int, max_length: int) -> None:
        """Fill a row, except its tokens and pages, for a prompt of this length.

        Its last token counts as not yet stored: the target's prefill goes on from there.
        """
        row = self.only(slot)
        row.length.fill_(length - 1)  # fill_ does not wait for the device, as an assignment by index would
        row.last_token.fill_(last_token)
        row.max_length.fill_(max_length)
        row.seed.fill_(seed)
        row.temperature.fill_(params.temperature)
        row.top_k.fill_(params.top_k)
        row.top_p.fill_(params.top_p)
        row.min_p.fill_(params.min_p)
        row.ignore_eos.fill_(params.ignore_eos)
        row.done.fill_(0)

    def retire(self, slot: int) -> None:
        row = self.only(slot)
        row.done.fill_(1)
        row.page_table.fill_(0)
        row.length.fill_(0)  # from now on its rows see one key
        row.last_token.fill_(0)

    def row_stats(self, logits: Tensor, saguaro_f: int = 0, saguaro_c: float = SpeculationOptions.saguaro_c) -> Tensor:
        """The processed distributions of logits [n·rows, V] float32, by each slot's parameters: [n·rows, STATS] float32."""
        return ops.row_stats(logits, self.temperature, self.top_k, self.top_p, self.min_p, saguaro_f, saguaro_c)

    def rows(
        self, spec_tokens: Tensor, length: Tensor, first: int, count: int, parent: Tensor | None = None, depth: int = 0
    ) -> Rows:
        """The rows of `count` nodes per slot from node `first` on, see `ops.tree_rows`.

        spec_tokens: [n, T − 1] int32; length: [n] int32, the roots' positions.
        """
        rows = ops.tree_rows(self.tokens, spec_tokens, length, self.page_table, parent, PAGE_SIZE, first, count, depth)
        return Rows.of(rows, self.page_table) if parent is not None else Rows(*rows[:5], self.page_table)


class QRows(NamedTuple):
    """The location of distributions in q.

    Address b < B belongs to branch b, and address B to the speculation drafted on the spot. Row i is the distribution that the
    children of node i were drawn from.
    """

    address: int | slice
    row: int | slice


@dataclass
class Speculation(SlotTables):
    """The tables that the draft hands to the target: up to K tokens per slot, and the distributions they were drawn from. For a
    tree, K counts its nodes except the root.

    A row of logits is bad if it has NaN or +inf, or if no logit is finite (`ops.row_stats`). A bad row of the draft ends the
    speculation there; in a tree, its node has no children. A shorter speculation keeps the output exact.

    Distributions and outcomes have two halves. In a round, the look-up flips `parity`. The fallback draws into half `parity`;
    the verification reads this half and writes its outcome to it. The branches, for the next round, draw into half 1 − parity.
    """

    tokens: Tensor  # [S, K] int32
    length: Tensor  # [S] int32, the number of valid tokens
    hit: Tensor  # [S] uint8, whether the tokens came from the speculation cache
    q_address: Tensor  # [S] int32: a branch, B (drafted on the spot), or −1 (not drawn), see `QRows`
    bad: Tensor  # [S] int32, 1 where a bad row of the draft shortened the speculation or took guesses away
    parity: Tensor  # [1] int32, the half of q and of the outcomes in use
    q_logits: Tensor | None = None  # [S, 2, B + 1, K, Vd] float32, allocated for the first request that samples
    q_stats: Tensor | None = None  # [S, 2, B + 1, K, STATS] float32

    _shared = ("parity",)

    @classmethod
    def allocate(cls, slots: int, lookahead: int, device: torch.device) -> Speculation:
        """lookahead: K; 0 for autoregressive decoding, which proposes nothing."""
        return cls(
            tokens=torch.zeros(slots, lookahead, dtype=torch.int32, device=device),
            length=torch.zeros(slots, dtype=torch.int32, device=device),
            hit=torch.zeros(slots, dtype=torch.uint8, device=device),
            q_address=torch.full((slots,), -1, dtype=torch.int32, device=device),
            bad=torch.zeros(slots, dtype=torch.int32, device=device),
            parity=torch.zeros(1, dtype=torch.int32, device=device),
        )

    @property
    def lookahead(self) -> int:
        return self.tokens.shape[1]

    @property
    def sampled(self) -> bool:
        """Whether distributions are held.

        After the first request that samples they are held forever, and greedy rounds fill them too. A program that keeps
        distributions and one that does not are recorded separately.
        """
        return self.q_logits is not None

    def hold_distributions(self, budget: int, vocab_size: int) -> None:
        """Allocate q, unless it is allocated. Greedy decoding never reads it. budget: B. vocab_size: Vd."""
        if self.q_logits is None:
            shape = (self.tokens.shape[0], 2, budget + 1, self.lookahead)
            self.q_logits = torch.empty(*shape, vocab_size, dtype=torch.float32, device=self.tokens.device)
            self.q_stats = torch.empty(*shape, ops.STATS, dtype=torch.float32, device=self.tokens.device)

    def q_at(self, q_rows: QRows) -> tuple[Tensor | None, Tensor | None]:
        """The place in q of the distributions that tokens are drawn from, or None if q is not held.

        Views [n, 2, addresses or rows, Vd] and [n, 2, addresses or rows, STATS].
        """
        if self.q_logits is None or self.q_stats is None:
            return None, None
        return self.q_logits[:, :, q_rows.address, q_rows.row], self.q_stats[:, :, q_rows.address, q_rows.row]


@dataclass
class Branches(SlotTables):
    """The draft's copy of each sequence's length and last token, latched at a look-up, and the branches that the draft
    prepares.

    A guess is an outcome (node, token) of the verification in flight: the last accepted node, and the token after it.
    `ops.verify` writes the accepted count, which in a chain is the node.
    """

    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    guess: Tensor  # [S, B] int32, the token
    guess_node: Tensor  # [S, B] int32, the node before the token, negative where there is no guess
    branch_tokens: Tensor  # [S, B, K] int32, −1 after a bad row
    scratch: Tensor  # [S, B, K] int32, KV slots of the branches' own tokens
    missed: Tensor  # [S] uint8, the slots whose speculation the fallback has to fill
    seen: Tensor  # [S, 4] int32, the outcomes that the last look-up saw: the rows of `Seen` (round.py)
    z: Tensor | None = None  # [S, K + 1, Vd] float32, the logits that the guesses were chosen from

    @classmethod
    def allocate(cls, slots: int, budget: int, lookahead: int, first_scratch_slot: int, device: torch.device) -> Branches:
        """budget: B; 0 for a draft that prepares no branches. first_scratch_slot: the KV slot where the scratch pages begin."""
        branches = (slots, budget, lookahead)
        scratch = torch.arange(slots * budget * lookahead, dtype=torch.int32, device=device).view(branches)
        return cls(
            length=torch.zeros(slots, dtype=torch.int32, device=device),
            last_token=torch.zeros(slots, dtype=torch.int32, device=device),
            guess=torch.zeros(slots, budget, dtype=torch.int32, device=device),
            guess_node=torch.full((slots, budget), -1, dtype=torch.int32, device=device),
            branch_tokens=torch.zeros(branches, dtype=torch.int32, device=device),
            scratch=first_scratch_slot + scratch,
            missed=torch.zeros(slots, dtype=torch.uint8, device=device),
            seen=torch.full((slots, 4), -1, dtype=torch.int32, device=device),
        )

    @property
    def budget(self) -> int:
        return self.guess.shape[1]

    def rows(self, page_table: Tensor, step: int) -> Rows:
        """The rows of one step of every branch, see `ops.branch_rows`. page_table: [n, P] int32."""
        rows = ops.branch_rows(self.guess, self.guess_node, self.branch_tokens, self.length, self.scratch, step)
        return Rows.of(rows, page_table)

    def hold_z(self, vocab_size: int) -> None:
        """Allocate z, which only a draft with branches needs. vocab_size: Vd."""
        slots, _, lookahead = self.branch_tokens.shape
        self.z = torch.zeros(slots, lookahead + 1, vocab_size, dtype=torch.float32, device=self.length.device)


@dataclass
class Tables:
    """The tables of one side of a round. On one device both sides have the same state and the same speculation."""

    state: SequenceState
    staging: SequenceState  # one row, for the prompt that is being stored
    speculation: Speculation


@dataclass
class DraftTables(Tables):
    """The tables of the draft's side. context: the draft's, if sequences may outgrow it; beyond it nothing is proposed."""

    branches: Branches
    context: int | None = None

    def first(self, n: int) -> DraftTables:
        """The tables of slots 0..n−1, as views."""
        return DraftTables(self.state.first(n), self.staging, self.speculation.first(n), self.branches.first(n), self.context)

    @property
    def draft_context(self) -> int:
        """The positions that the draft may read, for the ops."""
        return self.context if self.context is not None else ops.NO_LIMIT

    def latch_and_look_up(self, nodes_within: Tensor | None = None) -> None:
        """Latch each sequence's length and last token, and hand out the branch of its outcome.

        A slot without such a branch is a miss: its speculation gets no tokens yet, and the length K, or less near max_length
        and near the end of the draft's context. A hit and a miss are cut alike. A branch that a bad row of the draft cut short
        gives a speculation of its length. nodes_within: for a tree, see `ops.cache_lookup`.
        """
        state, speculation, branches = self.state, self.speculation, self.branches
        ops.cache_lookup(
            outcome=state.outcome,
            guess=branches.guess,
            guess_k=branches.guess_node,
            branch_tokens=branches.branch_tokens,
            length=state.length,
            last_token=state.last_token,
            max_length=state.max_length,
            done=state.done,
            nodes_within=nodes_within,
            draft_context=self.draft_context,
            parity=speculation.parity,
            draft_length=branches.length,
            draft_last_token=branches.last_token,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            hit=speculation.hit,
            missed=branches.missed,
            q_address=speculation.q_address,
            bad=speculation.bad,
        )
