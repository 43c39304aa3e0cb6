"""The device-resident tables of the running sequences: one row a sequence slot.

A round is a program over these tables. The host fills a row when it admits a request, and reads tokens and lengths after the
rounds. Tables are slot first, and `first(n)` gives the same tables cut to the first n slots: a smaller batch is a smaller program.
A free slot is a done slot: its rows write to the null page and append nothing.

Length n means n tokens whose K/V are stored; the last committed token is at position n and not yet stored.
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
    """A dataclass of tensors whose first dimension is the slot, but for the names in `_shared`."""

    _shared: tuple[str, ...] = ()

    def first(self, n: int) -> Self:
        """The tables of slots 0..n−1, as views."""
        return self._cut(slice(n))

    def only(self, slot: int) -> Self:
        """The tables of one slot, as views."""
        return self._cut(slice(slot, slot + 1))

    def by_slot(self) -> list[Tensor]:
        """The tables that have a row a slot, in the order of their names."""
        return [getattr(self, f.name) for f in fields(self) if f.name not in self._shared]  # type: ignore[arg-type]

    def copy_from(self, other: Self) -> None:
        """Copy another's rows, as many as there are here."""
        for there, here in zip(self.by_slot(), other.by_slot(), strict=True):
            there.copy_(here)

    def _cut(self, slots: slice) -> Self:
        tables = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v if k in self._shared or v is None else v[slots] for k, v in tables.items()})


@dataclass
class SequenceState(SlotTables):
    """The committed part of each sequence, and how its request draws."""

    tokens: Tensor  # [S, N] int32, prompt and output
    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    max_length: Tensor  # [S] int32, tokens at which the sequence is finished
    done: Tensor  # [S] uint8
    page_table: Tensor  # [S, P] int32, of both models
    outcome: Tensor  # [S, 2, 2] int32 by parity: (accepted count, next token); see `Branches` for the count as a node
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
        """capacity: tokens a row holds; pages: K/V pages a row names."""

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

    def admit(self, slot: int, length: int, last_token: int, params: SamplingParams, seed: int, max_length: int) -> None:
        """Fill a row, but for its tokens and pages, for a prompt of that length whose last token is not yet stored: the target's
        prefill goes on from here."""
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
        row.length.fill_(0)  # its rows see one key from now on
        row.last_token.fill_(0)

    def row_stats(self, logits: Tensor, saguaro_f: int = 0, saguaro_c: float = SpeculationOptions.saguaro_c) -> Tensor:
        """The processed distribution of [n, rows, V] logits, each row by its slot's request: [n, rows, STATS]."""
        n, rows, vocabulary = logits.shape
        settings = (self.temperature, self.top_k, self.top_p, self.min_p)
        temperature, top_k, top_p, min_p = (table.repeat_interleave(rows) for table in settings)
        flat = logits.reshape(n * rows, vocabulary)
        stats = ops.row_stats(flat, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c)
        return stats.view(n, rows, ops.STATS)

    def kv_slots(self, positions: Tensor) -> Tensor:
        """The KV slots of these positions: [n, any] int32."""
        page = self.page_table.gather(1, (positions // PAGE_SIZE).long())
        return page * PAGE_SIZE + positions % PAGE_SIZE

    def rows(self, ids: Tensor, length: Tensor, start: int = 0) -> Rows:
        """Rows of a run of tokens a slot, at the positions from length + start on; ids: [n, T], length: [n]. Each row sees all keys before
        it and its own."""
        n, width = ids.shape
        positions = length[:, None] + torch.arange(start, start + width, dtype=torch.int32, device=ids.device)
        sequence = torch.arange(n, dtype=torch.int32, device=ids.device)
        return Rows(
            ids=ids.flatten(),
            positions=positions.flatten(),
            kv_slots=self.kv_slots(positions).flatten(),
            row_seq=sequence.repeat_interleave(width),
            prefix_len=(positions + 1).flatten(),
            page_table=self.page_table,
        )


class QRows(NamedTuple):
    """Where distributions stand in q: at which addresses, and in which rows there. Address b < B is branch b's, and B is the address of
    whatever was drafted on the spot; row i is the distribution that node i's children were drawn from."""

    address: int | slice
    row: int | slice


@dataclass
class Speculation(SlotTables):
    """The tables that the draft hands to the target: up to K tokens a slot, and the distributions they were drawn from. For a tree, K
    counts its nodes except the root.

    Distributions and outcomes have two halves. In a round, the look-up flips `parity`. The fallback draws into half `parity`; the
    verification reads that half and writes its outcome to it. The branches, drawn for the round after, go to half 1 − parity.
    """

    tokens: Tensor  # [S, K] int32
    length: Tensor  # [S] int32, the tokens that count
    hit: Tensor  # [S] uint8, whether they came from the speculation cache
    q_address: Tensor  # [S] int32: a branch, B (drafted on the spot), or −1 (not drawn), see `QRows`
    parity: Tensor  # [1] int32, the half of q and of the outcomes in use
    q_logits: Tensor | None = None  # [S, 2, B + 1, K, Vd] float32, from the first request that samples on
    q_stats: Tensor | None = None  # [S, 2, B + 1, K, STATS] float32

    _shared = ("parity",)

    @classmethod
    def allocate(cls, slots: int, lookahead: int, device: torch.device) -> Speculation:
        """lookahead 0 is plain autoregressive decoding: nothing is ever proposed."""
        return cls(
            tokens=torch.zeros(slots, lookahead, dtype=torch.int32, device=device),
            length=torch.zeros(slots, dtype=torch.int32, device=device),
            hit=torch.zeros(slots, dtype=torch.uint8, device=device),
            q_address=torch.full((slots,), -1, dtype=torch.int32, device=device),
            parity=torch.zeros(1, dtype=torch.int32, device=device),
        )

    @property
    def lookahead(self) -> int:
        return self.tokens.shape[1]

    @property
    def sampled(self) -> bool:
        """Whether distributions are held. They are from the first request that samples on, and greedy rounds fill them too from then:
        a program that draws is another one than a program that does not."""
        return self.q_logits is not None

    def hold_distributions(self, budget: int, vocab_size: int) -> None:
        """Allocate q, once: greedy decoding never reads it."""
        if self.q_logits is None:
            shape = (self.tokens.shape[0], 2, budget + 1, self.lookahead)
            self.q_logits = torch.empty(*shape, vocab_size, dtype=torch.float32, device=self.tokens.device)
            self.q_stats = torch.empty(*shape, ops.STATS, dtype=torch.float32, device=self.tokens.device)

    def keep_distributions(self, half: Tensor, at: QRows, logits: Tensor, stats: Tensor) -> None:
        """Keep what tokens are drawn from, if q is held. half: [1]; logits: [n, addresses or rows, Vd]; stats: the same of STATS."""
        if self.q_logits is not None and self.q_stats is not None:
            for q, values in ((self.q_logits, logits), (self.q_stats, stats)):
                q[:, :, at.address, at.row].index_copy_(1, half.long(), values[:, None])


@dataclass
class Branches(SlotTables):
    """The draft's own copy of where each sequence stands, latched at a look-up, and the branches it prepares.

    A guess is an outcome (node, token) of the verification in flight: the last accepted node, and the token that follows it. `ops.verify`
    writes the accepted count, which in a chain is the node.
    """

    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    guess: Tensor  # [S, B] int32, the token
    guess_node: Tensor  # [S, B] int32, the node it follows, −1 where there is no guess
    branch_tokens: Tensor  # [S, B, K] int32
    scratch: Tensor  # [S, B, K] int32, KV slots of the branches' own tokens
    seen: Tensor  # [S, 4] int32, what the last look-up saw: the rows of `Seen` (round.py)
    z: Tensor | None = None  # [S, K + 1, Vd] float32, the logits that the guesses were chosen from

    @classmethod
    def allocate(cls, slots: int, budget: int, lookahead: int, first_scratch_slot: int, device: torch.device) -> Branches:
        """budget 0: only the latched copy, for a draft that prepares no branches."""
        branches = (slots, budget, lookahead)
        scratch = torch.arange(slots * budget * lookahead, dtype=torch.int32, device=device).view(branches)
        return cls(
            length=torch.zeros(slots, dtype=torch.int32, device=device),
            last_token=torch.zeros(slots, dtype=torch.int32, device=device),
            guess=torch.zeros(slots, budget, dtype=torch.int32, device=device),
            guess_node=torch.full((slots, budget), -1, dtype=torch.int32, device=device),
            branch_tokens=torch.zeros(branches, dtype=torch.int32, device=device),
            scratch=first_scratch_slot + scratch,
            seen=torch.full((slots, 4), -1, dtype=torch.int32, device=device),
        )

    @property
    def budget(self) -> int:
        return self.guess.shape[1]

    def hold_z(self, vocab_size: int) -> None:
        """Allocate z: without branches nothing is ever guessed."""
        slots, _, lookahead = self.branch_tokens.shape
        self.z = torch.zeros(slots, lookahead + 1, vocab_size, dtype=torch.float32, device=self.length.device)


@dataclass
class Tables:
    """The tables of one side of a round. On one device both sides have the same state and the same speculation."""

    state: SequenceState
    staging: SequenceState  # one row: the prompt that is being stored
    speculation: Speculation


@dataclass
class DraftTables(Tables):
    """The draft's side."""

    branches: Branches

    def first(self, n: int) -> DraftTables:
        """The tables of slots 0..n−1, as views."""
        return DraftTables(self.state.first(n), self.staging, self.speculation.first(n), self.branches.first(n))

    def latch(self) -> None:
        """Copy where the target stands, and hand out the branch drafted for its outcome. A slot without one is a miss: it gets the room
        that its sequence has left, and no tokens yet."""
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
            parity=speculation.parity,
            draft_length=branches.length,
            draft_last_token=branches.last_token,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            hit=speculation.hit,
            q_address=speculation.q_address,
        )
