"""The device-resident tables of the running sequences: one row a sequence slot.

A round is a program over these tables; the host fills a row when a request is admitted and reads tokens and lengths behind the
rounds. Tables are slot first, and `first(n)` gives the same tables cut to the first n slots: a smaller batch is a smaller
program. A slot that is free is a slot that is done: its rows write to the null page and append nothing.

Length n means n tokens whose K/V are stored; the last committed token is at position n and not yet stored.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from ssd import ops
from ssd.kv.cache import Rows
from ssd.options import SamplingParams


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
    """The target's side: what is committed, and how each request draws."""

    tokens: Tensor  # [S, N] int32, prompt and output
    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    max_length: Tensor  # [S] int32, tokens at which the sequence is finished
    done: Tensor  # [S] uint8
    page_table: Tensor  # [S, P] int32, of both models
    outcome: Tensor  # [S, 2, 2] int32, (accepted, next token) by parity
    seed: Tensor  # [S] int64
    temperature: Tensor  # [S] float32
    top_k: Tensor  # [S] int32
    top_p: Tensor  # [S] float32
    min_p: Tensor  # [S] float32
    ignore_eos: Tensor  # [S] uint8
    eos: Tensor  # [E] int32

    _shared = ("eos",)

    @classmethod
    def allocate(cls, slots: int, places: int, pages: int, eos: tuple[int, ...], device: torch.device) -> SequenceState:
        """places: tokens a row holds; pages: K/V pages a row names."""

        def table(*shape: int, dtype: torch.dtype = torch.int32, fill: float = 0) -> Tensor:
            return torch.full((slots, *shape), fill, dtype=dtype, device=device)

        return cls(
            tokens=table(places),
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
        """Fill a row, but for its tokens and pages, for a prompt of that length whose last token is still to be stored: the target's
        prefill goes on from here."""
        self.length[slot] = length - 1
        self.last_token[slot] = last_token
        self.max_length[slot] = max_length
        self.seed[slot] = seed
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.ignore_eos[slot] = params.ignore_eos
        self.done[slot] = 0

    def retire(self, slot: int) -> None:
        self.done[slot] = 1
        self.page_table[slot] = 0
        self.length[slot] = 0  # its rows see one key from now on
        self.last_token[slot] = 0

    def row_stats(self, logits: Tensor, saguaro_f: int = 0, saguaro_c: float = 1.0) -> Tensor:
        """The processed distribution of [n, rows, V] logits, every row of a slot by its own request: [n, rows, STATS]."""
        n, rows, vocabulary = logits.shape
        temperature, top_k, top_p, min_p = (
            each.repeat_interleave(rows) for each in (self.temperature, self.top_k, self.top_p, self.min_p)
        )
        flat = logits.reshape(n * rows, vocabulary)
        stats = ops.row_stats(flat, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c)
        return stats.view(n, rows, ops.STATS)

    def kv_slots(self, positions: Tensor, page_size: int) -> Tensor:
        """Where the K/V of these positions lives: [n, any] int32."""
        page = self.page_table.gather(1, (positions // page_size).long())
        return page * page_size + positions % page_size

    def rows(self, ids: Tensor, first_position: Tensor, page_size: int) -> Rows:
        """Rows of a run of tokens a slot, behind each other from first_position [n] on; ids: [n, T]. Each sees all before it and itself."""
        n, width = ids.shape
        positions = first_position[:, None] + torch.arange(width, dtype=torch.int32, device=ids.device)
        sequence = torch.arange(n, dtype=torch.int32, device=ids.device)
        return Rows(
            ids=ids.flatten(),
            positions=positions.flatten(),
            kv_slots=self.kv_slots(positions, page_size).flatten(),
            row_seq=sequence.repeat_interleave(width),
            prefix_len=(positions + 1).flatten(),
            page_table=self.page_table,
        )


@dataclass
class Speculation(SlotTables):
    """What the draft hands to the target: up to K tokens a slot, and the distributions they were drawn from. Of a tree K is the
    number of its nodes behind the root, and row i of the distributions what node i's children were drawn from.

    Distributions and outcomes have two halves. In a round, the look-up flips `parity`; the fallback draws into half `parity`, which
    the verification reads, and writes its outcome to; the branches, drawn for the round after, go to half 1 − parity.
    """

    tokens: Tensor  # [S, K] int32
    length: Tensor  # [S] int32, the tokens that count
    hit: Tensor  # [S] uint8, whether they came from the speculation cache
    q_address: Tensor  # [S] int32, where their distributions are: a branch, B the fallback, −1 they were not drawn
    parity: Tensor  # [1] int32, the half of q and of the outcome mailbox in use
    q_logits: Tensor | None = None  # [S, 2, B + 1, K, Vd] float32, once a request samples
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
        """Whether distributions are held: a program that draws is another one then."""
        return self.q_logits is not None

    def hold_distributions(self, budget: int, vocab_size: int) -> None:
        """Allocate q, once: greedy decoding never reads it."""
        if self.q_logits is None:
            shape = (self.tokens.shape[0], 2, budget + 1, self.lookahead)
            self.q_logits = torch.empty(*shape, vocab_size, dtype=torch.float32, device=self.tokens.device)
            self.q_stats = torch.empty(*shape, ops.STATS, dtype=torch.float32, device=self.tokens.device)


@dataclass
class DraftState(SlotTables):
    """The draft's own copy of where each sequence stands, latched at a look-up, and the branches it prepares."""

    length: Tensor  # [S] int32
    last_token: Tensor  # [S] int32
    guess: Tensor  # [S, B] int32
    guess_k: Tensor  # [S, B] int32, −1 where there is no guess
    branch_tokens: Tensor  # [S, B, K] int32
    scratch: Tensor  # [S, B, K] int32, KV slots of the branches' own tokens
    seen: Tensor  # [S, 4] int32, of the last outcome: (after a hit, spec_len, k, the next token's rank), −1 where none was looked up
    z: Tensor | None = None  # [S, K + 1, Vd] float32, what the guesses under way are chosen from

    @classmethod
    def allocate(cls, slots: int, budget: int, lookahead: int, first_scratch_slot: int, device: torch.device) -> DraftState:
        branches = (slots, budget, lookahead)
        places = torch.arange(slots * budget * lookahead, dtype=torch.int32, device=device).view(branches)
        return cls(
            length=torch.zeros(slots, dtype=torch.int32, device=device),
            last_token=torch.zeros(slots, dtype=torch.int32, device=device),
            guess=torch.zeros(slots, budget, dtype=torch.int32, device=device),
            guess_k=torch.full((slots, budget), -1, dtype=torch.int32, device=device),
            branch_tokens=torch.zeros(branches, dtype=torch.int32, device=device),
            scratch=first_scratch_slot + places,
            seen=torch.full((slots, 4), -1, dtype=torch.int32, device=device),
        )

    def hold_z(self, vocab_size: int) -> None:
        """Allocate z: without branches nothing is ever guessed."""
        slots, _, lookahead = self.branch_tokens.shape
        self.z = torch.zeros(slots, lookahead + 1, vocab_size, dtype=torch.float32, device=self.length.device)

    def look_up(self, state: SequenceState, speculation: Speculation) -> None:
        """Latch where the target stands, and hand out the branch drafted for its outcome, or what makes it a miss."""
        ops.cache_lookup(
            outcome=state.outcome,
            guess=self.guess,
            guess_k=self.guess_k,
            branch_tokens=self.branch_tokens,
            length=state.length,
            last_token=state.last_token,
            max_length=state.max_length,
            done=state.done,
            parity=speculation.parity,
            draft_length=self.length,
            draft_last_token=self.last_token,
            spec_tokens=speculation.tokens,
            spec_len=speculation.length,
            hit=speculation.hit,
            q_address=speculation.q_address,
        )
