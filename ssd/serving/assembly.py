"""From two models and a user's settings to what an engine's rounds work on: tables, K/V pages, and the loop over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ssd.decoding import fanout
from ssd.decoding.autoregressive import Autoregressive
from ssd.decoding.cache import SpeculationCache
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.drafters.ngram import NgramDrafter
from ssd.decoding.failover import Failover, Loop
from ssd.decoding.fallback import FallbackPolicy
from ssd.decoding.link import Link, TwoDevices
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.decoding.state import Branches, DraftTables, SequenceState, Speculation, Tables
from ssd.decoding.tree import Tree
from ssd.decoding.verifier import Verifier
from ssd.kv.cache import PAGE_SIZE, KVCache
from ssd.models.pair import Draft, Target
from ssd.native import PageAllocator
from ssd.options import EngineOptions, SpeculationOptions
from ssd.runtime.executor import Executor
from ssd.runtime.paced import paced
from ssd.runtime.placement import Placement, memory_for_kv
from ssd.serving.core import Core
from ssd.serving.footprint import Footprint
from ssd.serving.mode import Mode
from ssd.serving.scheduler import Scheduler


class Assembly:
    """The target's tables, its K/V pages and who has them, and loops over these.

    mode: "ar", "sd" or "ssd". draft: None without a draft model. max_context: tokens of a sequence.
    Raises SsdError where memory holds no K/V at all.
    """

    def __init__(
        self,
        config: EngineOptions,
        speculation: SpeculationOptions,
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
        self._pace: tuple[float | None, float | None] = config.pace or (None, None)  # of the target, of the draft
        self._slots = config.max_batch
        self._places = max_context + self._proposed + 1
        self._pages_a_sequence = -(-(max_context + self._proposed) // PAGE_SIZE)
        self._num_pages = 1 + min(self._slots * self._pages_a_sequence, self._affordable_pages(config))
        self.state, self._staging = self._sequences(self._placement.target)
        self.pages = PageAllocator(self._num_pages)
        model = target.model
        self.cache = KVCache(model.config, self._num_pages, model.dtype, placement.target)
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
        device = self._placement.target
        tables = Tables(self.state, self._staging, Speculation.allocate(self._slots, 0, device))
        return Autoregressive(self._verifier(tables, Tree((), device)), self._executor)

    def with_ngrams(self) -> Speculative:
        """Speculation without a draft model."""
        device = self._placement.target
        speculation = Speculation.allocate(self._slots, self._proposed, device)
        branches = Branches.allocate(self._slots, 0, self._proposed, 0, device)
        tables = DraftTables(self.state, self._staging, speculation, branches)
        return Speculative(self._verifier(tables, self._tree(device)), NgramDrafter(tables), Link(), self._executor)

    def with_draft(self) -> Speculative:
        """Speculation with the draft model, in mode "sd" or "ssd". Raises RuntimeError where its tables find no room."""
        assert self._draft is not None
        here, there, apart = self._placement.target, self._placement.draft, self._placement.apart
        state, staging = self._sequences(there) if apart else (self.state, self._staging)
        speculation = Speculation.allocate(self._slots, self._proposed, there)
        branches = Branches.allocate(self._slots, self._budget, self._proposed, self._num_pages * PAGE_SIZE, there)
        tables = DraftTables(state, staging, speculation, branches)
        drafter = self._drafter(self._draft, tables)
        tree = self._tree(here)
        target, link = Tables(self.state, self._staging, speculation), Link()
        if apart:
            target.speculation = Speculation.allocate(self._slots, self._proposed, here)
            link = TwoDevices(target, tables, tree, self._executor)
        verifier = self._verifier(target, tree, self._draft.draft_id_of)
        if self._mode == "sd":
            return Speculative(verifier, drafter, link, self._executor)
        return SpeculativeSpeculative(verifier, self._cache(drafter), link, self._executor)

    def footprint(self, loop: Loop, threads: int) -> Footprint:
        """loop: the one in use."""
        drafter = loop.drafter if isinstance(loop, Speculative) and isinstance(loop.drafter, ModelDrafter) else None
        draft_kv = drafter.kv_cache.kv.nbytes if drafter is not None else 0
        recorded = self._executor.recorded
        return Footprint(
            mode=loop.mode,
            device=str(self._placement.target),
            draft_device=str(self._placement.draft) if drafter is not None else None,
            dtype=str(self._placement.dtype).removeprefix("torch."),
            rounds=self._executor.kind if self._pace[0] is None else "paced",
            threads=threads,
            target_pass_bytes=self._target.model.weight_bytes(),
            draft_pass_bytes=drafter.model.weight_bytes() if drafter is not None else None,
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

    def _affordable_pages(self, config: EngineOptions) -> int:
        """Pages for which there is room in the K/V of both models, beside what recorded rounds keep, and the distributions of requests
        that sample: once there is one, those take their share; were that over half, the draft would fail then, and not the target."""
        model, proposed = self._target.model, self._proposed
        page = KVCache.bytes_a_page(model.config, model.dtype)
        records = bool(self._executor.prepared)
        memory = memory_for_kv(config, self._placement.target)
        if records:
            # p's logits of the largest batch: all smaller ones come to another such, and those that sample to as many again.
            logits = 4 * self._slots * (proposed + 1) * model.vocab_size
            memory -= min(4 * logits, memory // 4)
        if self._draft is None:
            return max(0, memory // page)
        of_draft = self._draft.model
        draft_page = KVCache.bytes_a_page(of_draft.config, of_draft.dtype)
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

    def _verifier(self, tables: Tables, tree: Tree, draft_id_of: Tensor | None = None) -> Verifier:
        columns = draft_id_of.to(self._placement.target) if draft_id_of is not None else None
        model = paced(self._target.model, self._pace[0])
        return Verifier(model, self.cache, tables, tree, self._executor, columns)

    def _tree(self, device: torch.device) -> Tree:
        """The shape of a speculation: the user's tree, or a chain."""
        return Tree(self._speculation.tree or (1,) * self._speculation.lookahead, device)

    def _drafter(self, draft: Draft, tables: DraftTables) -> ModelDrafter:
        device, settings = self._placement.draft, self._speculation
        cache = KVCache(draft.model.config, self._num_pages + self._scratch_pages, draft.model.dtype, device)
        model = replace(draft, model=paced(draft.model, self._pace[1]))
        tree = self._tree(device)
        return ModelDrafter(model, cache, tables, tree, self._executor, settings.top_f, settings.saguaro_c)

    def _cache(self, drafter: ModelDrafter) -> SpeculationCache:
        settings, budget = self._speculation, self._budget
        table = fanout.tables(settings.fan_out, settings.lookahead, budget).to(self._placement.draft)
        measured = fanout.Measured(settings.lookahead, budget) if settings.fan_out == "measured" else None
        return SpeculationCache(drafter, self._executor, table, measured, FallbackPolicy(settings.fallback))
