"""The assembly of an engine's core from two models and options: tables, K/V pages, and the loop over them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ssd.decoding import fanout
from ssd.decoding.autoregressive import Autoregressive
from ssd.decoding.cache import SpeculationCache
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.drafters.ngram import NgramDrafter
from ssd.decoding.failover import Failover
from ssd.decoding.fallback import FallbackPolicy
from ssd.decoding.link import Link, TwoDevices
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.decoding.state import Branches, DraftTables, SequenceState, Speculation, Tables
from ssd.decoding.tree import Tree
from ssd.decoding.verifier import Verifier
from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE, KVCache
from ssd.kv.prefix import PrefixCache
from ssd.models.pair import Draft
from ssd.native import PageAllocator
from ssd.options import EngineOptions
from ssd.runtime.executor import Executor
from ssd.runtime.memory import must_fit
from ssd.runtime.paced import paced
from ssd.runtime.placement import Placement, memory_for_kv
from ssd.serving.core import Core
from ssd.serving.footprint import Footprint, affordable_pages, pages_a_sequence, scratch_pages
from ssd.serving.loading import LoadedModels
from ssd.serving.scheduler import Scheduler


class Assembly:
    """An engine's tables and K/V pages, and the loops over them.

    max_context: the longest sequence in tokens. Raises SsdError if the target was not trained for it, or if there is no memory
    for K/V.
    """

    def __init__(self, options: EngineOptions, models: LoadedModels, placement: Placement, executor: Executor) -> None:
        self._options = options
        self._models = models
        self._placement = placement
        self._executor = executor
        self._pace: tuple[float | None, float | None] = options.pace or (None, None)  # the target's, the draft's
        target = models.target
        self.max_context = options.max_context or target.context
        if self.max_context > target.context:
            raise SsdError(
                f"max_context is {self.max_context}; {target.name!r} was trained for {target.context} tokens, use at most that."
            )
        self._slots = options.max_batch
        self._proposed = options.speculation_options.nodes - 1  # the most tokens that a round proposes for a sequence
        self._budget = options.speculation_options.budget if models.mode == "ssd" else 0
        self._pages_a_sequence = pages_a_sequence(options, self.max_context)
        self._scratch_pages = scratch_pages(options, self._budget)
        with must_fit(f"K/V for gpu_memory_utilization={options.gpu_memory_utilization:g}", "lower it"):
            affordable = self._affordable_pages(bool(executor.prepared))
            self._num_pages = 1 + min(self._slots * self._pages_a_sequence, affordable)
            self.state, self._staging = self._sequences(placement.target_device)
            self.kv_cache = KVCache(target.model.config, self._num_pages, target.model.dtype, placement.target_device)
        self.pages = PrefixCache(PageAllocator(self._num_pages))
        remedy = "raise gpu_memory_utilization" if placement.target_device.type == "cuda" else "free some memory"
        identity = repr((options.target, options.draft, options.weights, str(target.model.dtype)))
        self.scheduler = Scheduler(
            self._slots, self.pages, self._proposed, remedy, identity if options.prefix_caching else None
        )

    def core(self) -> Core:
        """The engine's core with the loop of its mode; without a draft, if the draft did not load or its tables do not fit."""
        models, failover = self._models, Failover(self._executor, self.autoregressive)
        draft_error: Exception | None = models.draft_error
        if models.mode != "ar" and draft_error is None:
            try:
                failover.loop = self.with_draft(models.draft) if models.draft is not None else self.with_ngrams()
                if models.draft is not None and (context := self._draft_context(models.draft)) is not None:
                    failover.warnings.append(
                        f"the draft was trained for {context} tokens, and max_context is {self.max_context}; after {context} tokens "
                        "it proposes nothing, and decoding goes on token by token"
                    )
            except (MemoryError, RuntimeError) as error:
                draft_error = error
        if draft_error is not None:
            failover.lose_draft(draft_error)
        return Core(self.scheduler, failover, self._executor, self._options, models.target.model.config.eos_token_ids)

    def autoregressive(self) -> Autoregressive:
        device = self._placement.target_device
        tables = Tables(self.state, self._staging, Speculation.allocate(self._slots, 0, device))
        return Autoregressive(self._verifier(tables, Tree((), device)), self._executor)

    def with_ngrams(self) -> Speculative:
        """The loop that proposes n-grams, without a draft model."""
        device = self._placement.target_device
        speculation = Speculation.allocate(self._slots, self._proposed, device)
        branches = Branches.allocate(self._slots, 0, self._proposed, 0, device)
        tables = DraftTables(self.state, self._staging, speculation, branches)
        return Speculative(self._verifier(tables, self._tree(device)), NgramDrafter(tables), Link(), self._executor)

    def with_draft(self, draft: Draft) -> Speculative:
        """The loop with the draft model, "sd" or "ssd". Raises RuntimeError if there is no memory for its tables."""
        target_device, draft_device, apart = self._placement.target_device, self._placement.draft_device, self._placement.apart
        state, staging = self._sequences(draft_device) if apart else (self.state, self._staging)
        speculation = Speculation.allocate(self._slots, self._proposed, draft_device)
        branches = Branches.allocate(self._slots, self._budget, self._proposed, self._num_pages * PAGE_SIZE, draft_device)
        draft_side = DraftTables(state, staging, speculation, branches, self._draft_context(draft))
        drafter = self._drafter(draft, draft_side)
        tree = self._tree(target_device)
        target_side, link = Tables(self.state, self._staging, speculation), Link()
        if apart:
            target_side.speculation = Speculation.allocate(self._slots, self._proposed, target_device)
            link = TwoDevices(target_side, draft_side, tree, self._executor)
        verifier = self._verifier(target_side, tree, draft.draft_id_of)
        if self._models.mode == "sd":
            return Speculative(verifier, drafter, link, self._executor)
        return SpeculativeSpeculative(verifier, self._cache(drafter), link, self._executor)

    def _draft_context(self, draft: Draft) -> int | None:
        """The longest sequence that the draft was trained for; None if no sequence is longer."""
        context = draft.model.config.max_position
        return context if context < self.max_context else None

    def footprint(self, core: Core) -> Footprint:
        loop, recorded = core.loop, self._executor.recorded
        drafter = loop.drafter if isinstance(loop, Speculative) and isinstance(loop.drafter, ModelDrafter) else None
        draft_kv = drafter.kv_cache.kv.nbytes if drafter is not None else 0
        return Footprint(
            mode=loop.mode,
            device=str(self._placement.target_device),
            draft_device=str(self._placement.draft_device) if drafter is not None else None,
            dtype=str(self._placement.dtype).removeprefix("torch."),
            rounds=self._executor.kind if self._options.pace is None else "paced",
            threads=core.threads,
            target_pass_bytes=self._models.target.model.weight_bytes(),
            draft_pass_bytes=drafter.model.weight_bytes() if drafter is not None else None,
            kv_pages=self.pages.capacity,
            kv_page_tokens=PAGE_SIZE,
            kv_bytes=self.kv_cache.kv.nbytes + draft_kv,
            draft_kv_bytes=draft_kv,
            recorded=recorded.programs,
            batch_sizes=self._executor.prepared,
            recording_seconds=recorded.seconds,
            recording_bytes=recorded.bytes,
        )

    def _affordable_pages(self, records: bool) -> int:
        placement, draft = self._placement, self._models.draft
        memory = memory_for_kv(self._options, placement.target_device)
        elsewhere = draft is not None and placement.draft_device != placement.target_device
        draft_memory = memory_for_kv(self._options, placement.draft_device) if elsewhere else None
        draft_model = draft.model if draft is not None else None
        return affordable_pages(
            self._options, self._models.target.model, draft_model, self._budget, memory, draft_memory, placement.apart, records
        )

    def _sequences(self, device: torch.device) -> tuple[SequenceState, SequenceState]:
        """The tables of all slots, and the staging tables."""
        eos, capacity = self._models.target.model.config.eos_token_ids, self.max_context + self._proposed + 1
        state, staging = (
            SequenceState.allocate(rows, capacity, self._pages_a_sequence, eos, device) for rows in (self._slots, 1)
        )
        return state, staging

    def _verifier(self, tables: Tables, tree: Tree, draft_id_of: Tensor | None = None) -> Verifier:
        columns = draft_id_of.to(self._placement.target_device) if draft_id_of is not None else None
        model = paced(self._models.target.model, self._pace[0])
        return Verifier(model, self.kv_cache, tables, tree, self._executor, columns)

    def _tree(self, device: torch.device) -> Tree:
        """The shape of every speculation: the user's tree, or a chain."""
        return Tree(self._options.speculation_options.tree or (1,) * self._options.speculation_options.lookahead, device)

    def _drafter(self, draft: Draft, tables: DraftTables) -> ModelDrafter:
        device, settings = self._placement.draft_device, self._options.speculation_options
        cache = KVCache(draft.model.config, self._num_pages + self._scratch_pages, draft.model.dtype, device)
        paced_draft = replace(draft, model=paced(draft.model, self._pace[1]))
        tree = self._tree(device)
        return ModelDrafter(paced_draft, cache, tables, tree, self._executor, settings.top_f, settings.saguaro_c)

    def _cache(self, drafter: ModelDrafter) -> SpeculationCache:
        settings, budget = self._options.speculation_options, self._budget
        table = fanout.tables(settings.fan_out, settings.lookahead, budget).to(self._placement.draft_device)
        measured = fanout.Measured(settings.lookahead, budget) if settings.fan_out == "measured" else None
        return SpeculationCache(drafter, self._executor, table, measured, FallbackPolicy(settings.fallback))
