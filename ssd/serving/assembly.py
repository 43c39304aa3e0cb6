"""From two models and a user's settings to what an engine's rounds work on: tables, K/V pages, and the loop over them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ssd.decoding import fanout
from ssd.decoding.autoregressive import Autoregressive
from ssd.decoding.failover import Failover, Loop
from ssd.decoding.fallback import Fallback, NgramSpeculator
from ssd.decoding.link import Exchange, Tables, TwoDevices
from ssd.decoding.speculative import Speculative
from ssd.decoding.speculator import Drafting, Speculator
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.decoding.state import DraftState, SequenceState, Speculation
from ssd.decoding.tree import Tree
from ssd.decoding.verifier import Verifier
from ssd.kv.cache import PAGE_SIZE, KVCache
from ssd.models.pair import Draft, Target
from ssd.native import PageAllocator
from ssd.options import EngineConfig, Mode, SpeculationConfig
from ssd.runtime.executor import Executor
from ssd.runtime.placement import Placement, memory_for_kv
from ssd.serving.core import Core
from ssd.serving.footprint import Footprint
from ssd.serving.scheduler import Scheduler


class Assembly:
    """The target's tables, its K/V pages and who has them, and loops over these.

    mode: "ar", "sd" or "ssd". draft: None without a draft model. max_context: tokens of a sequence.
    Raises SsdError where memory holds no K/V at all.
    """

    def __init__(
        self,
        config: EngineConfig,
        speculation: SpeculationConfig,
        placement: Placement,
        target: Target,
        draft: Draft | None,
        mode: Mode,
        max_context: int,
        executor: Executor,
    ) -> None:
        self._speculation = speculation
        self._placement = placement
        self._target = target
        self._draft = draft
        self._mode = mode
        self._executor = executor
        self._slots = config.max_batch
        self._places = max_context + self._proposed + 1
        self._pages_a_sequence = -(-(max_context + self._proposed) // PAGE_SIZE)
        self._num_pages = 1 + min(self._slots * self._pages_a_sequence, self._affordable_pages(config))
        self.state, self._staging = self._sequences(self._placement.target)
        self.pages = PageAllocator(self._num_pages)
        model = target.model
        self.cache = KVCache(model.config, self._num_pages, PAGE_SIZE, model.dtype, placement.target)
        self.scheduler = Scheduler(self._slots, self.pages, self._proposed, self._more_memory)

    def core(self, lost: Exception | None, threads: Callable[[], int]) -> Core:
        """The engine's core. lost: the error that the draft could not be loaded for. threads: intra-op threads of the target."""
        failover = Failover(self._executor, self.autoregressive)
        if self._mode != "ar" and lost is None:
            try:
                failover.loop = self.with_draft() if self._draft is not None else self.with_ngrams()
            except (MemoryError, RuntimeError) as error:
                lost = error
        if lost is not None:
            failover.lose_draft(lost)
        return Core(self.scheduler, failover, self._executor, threads, self._target.model.config.eos_token_ids)

    def autoregressive(self) -> Autoregressive:
        nothing = Speculation.allocate(self._slots, 0, self._placement.target)
        return Autoregressive(self._verifier(Exchange(self._tables(nothing))), self._executor)

    def with_ngrams(self) -> Speculative:
        """Speculation without a draft model."""
        speculation = Speculation.allocate(self._slots, self._proposed, self._placement.target)
        draft = DraftState.allocate(self._slots, 0, self._proposed, 0, self._placement.target)
        verifier = self._verifier(Exchange(self._tables(speculation)))
        return Speculative(verifier, NgramSpeculator(self.state, speculation, draft), self._executor)

    def with_draft(self) -> Speculative:
        """Speculation with the draft model, in mode "sd" or "ssd". Raises RuntimeError where its tables find no room."""
        assert self._draft is not None
        exchange = self._exchange()
        speculator = self._speculator(self._draft, exchange)
        kind = Speculative if self._mode == "sd" else SpeculativeSpeculative
        return kind(self._verifier(exchange, self._draft), speculator, self._executor)

    def footprint(self, loop: Loop, threads: int) -> Footprint:
        """loop: the one in use."""
        speculator = loop.speculator if not isinstance(loop, Autoregressive) else None
        drafting = speculator if isinstance(speculator, Speculator) else None
        draft_kv = drafting.cache.kv.nbytes if drafting is not None else 0
        recorded = self._executor.recorded
        return Footprint(
            mode=loop.mode,
            device=str(self._placement.target),
            draft_device=str(self._placement.draft) if drafting is not None else None,
            dtype=str(self._placement.dtype).removeprefix("torch."),
            rounds=self._executor.kind,
            threads=threads,
            target_pass_bytes=self._target.model.weight_bytes(),
            draft_pass_bytes=drafting.model.weight_bytes() if drafting is not None else None,
            kv_pages=self.pages.capacity,
            kv_page_tokens=PAGE_SIZE,
            kv_bytes=self.cache.kv.nbytes + draft_kv,
            draft_kv_bytes=draft_kv,
            recorded=recorded.programs,
            batch_sizes=self._executor.prepared,
            recording_seconds=recorded.seconds,
            recording_bytes=recorded.bytes,
        )

    @property
    def _more_memory(self) -> str:
        """What a user can do for more pages."""
        return "raise gpu_memory_utilization" if self._placement.target.type == "cuda" else "free some memory"

    @property
    def _proposed(self) -> int:
        """Tokens a round proposes at most."""
        return self._speculation.nodes - 1

    @property
    def _budget(self) -> int:
        return self._speculation.budget if self._mode == "ssd" else 0

    @property
    def _scratch_pages(self) -> int:
        """Of the draft's K/V: where branches have their own tokens."""
        return -(-self._slots * self._budget * self._proposed // PAGE_SIZE)

    def _affordable_pages(self, config: EngineConfig) -> int:
        """Pages for which there is room in the K/V of both models, beside what recorded rounds keep, and the distributions of requests
        that sample: once there is one, those take their share; were that over half, the draft would fail then, and not the target."""
        model, proposed = self._target.model, self._proposed
        page = KVCache.bytes_a_page(model.config, PAGE_SIZE, model.dtype)
        records = bool(self._executor.prepared)
        memory = memory_for_kv(config, self._placement.target)
        if records:
            # p's logits of the largest batch: all smaller ones come to another such, and those that sample to as many again.
            logits = 4 * self._slots * (proposed + 1) * model.vocab_size
            memory -= min(4 * logits, memory // 4)
        if self._draft is None:
            return max(0, memory // page)
        of_draft = self._draft.model
        draft_page = KVCache.bytes_a_page(of_draft.config, PAGE_SIZE, of_draft.dtype)
        row = 4 * self._slots * of_draft.vocab_size
        held = 2 * (self._budget + 1) * proposed * row  # q
        held += (proposed + 1) * row if self._budget else 0  # z
        held += 2 * self._budget * row if records else 0  # the logits of a branch step
        arriving = 3 * proposed * row if self._placement.apart else 0  # of q, and its place among both halves
        scratch = self._scratch_pages * draft_page
        if self._placement.draft == self._placement.target:
            memory -= min(held + arriving, memory // 2) + scratch
            return max(0, memory // (page + draft_page))
        theirs = memory_for_kv(config, self._placement.draft)
        theirs -= min(held, theirs // 2) + scratch
        memory -= min(arriving, memory // 2)
        return max(0, min(memory // page, theirs // draft_page))

    def _sequences(self, device: torch.device) -> tuple[SequenceState, SequenceState]:
        """The tables of all slots, and the staging tables."""
        eos = self._target.model.config.eos_token_ids
        state, staging = (
            SequenceState.allocate(rows, self._places, self._pages_a_sequence, eos, device) for rows in (self._slots, 1)
        )
        return state, staging

    def _tables(self, speculation: Speculation) -> Tables:
        """The target's."""
        return Tables(self.state, self._staging, speculation)

    def _exchange(self) -> Exchange:
        here, there = self._placement.target, self._placement.draft
        speculation = Speculation.allocate(self._slots, self._proposed, there)
        if not self._placement.apart:
            return Exchange(self._tables(speculation))
        target = self._tables(Speculation.allocate(self._slots, self._proposed, here))
        draft = Tables(*self._sequences(there), speculation)
        return TwoDevices(target, draft, self._proposed + 1, self._speculation.tree is not None, self._executor)

    def _verifier(self, exchange: Exchange, draft: Draft | None = None) -> Verifier:
        columns = draft.draft_id_of if draft is not None else None
        if columns is not None:
            columns = columns.to(self._placement.target)
        tree = self._tree(self._placement.target) if exchange.target.speculation.lookahead else None
        return Verifier(self._target.model, self.cache, exchange, self._executor, columns, tree)

    def _tree(self, device: torch.device) -> Tree | None:
        tree = self._speculation.tree
        return Tree(tree, device) if tree is not None else None

    def _speculator(self, draft: Draft, exchange: Exchange) -> Speculator:
        settings, budget, device = self._speculation, self._budget, self._placement.draft
        drafting = Drafting(saguaro_f=settings.top_f, saguaro_c=settings.saguaro_c, tree=self._tree(device))
        if budget:
            drafting.fan_out = fanout.tables(settings.fan_out, settings.lookahead, budget).to(device)
            drafting.measured = fanout.Measured(settings.lookahead, budget) if settings.fan_out == "measured" else None
            drafting.fallback = Fallback(settings.fallback)
        cache = KVCache(draft.model.config, self._num_pages + self._scratch_pages, PAGE_SIZE, draft.model.dtype, device)
        branches = DraftState.allocate(self._slots, budget, self._proposed, self._num_pages * PAGE_SIZE, device)
        return Speculator(draft, cache, exchange, branches, self._executor, drafting)
