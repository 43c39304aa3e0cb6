"""The memory that an engine takes, and the number of K/V pages that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssd.kv.cache import KVCache
from ssd.options import EngineOptions
from ssd.runtime.placement import Placement, memory_for_kv
from ssd.serving.loading import LoadedModels


@dataclass(frozen=True)
class Footprint:
    """An engine's memory in bytes, and its settings.

    rounds: "eager", "recorded", "paced" or "graphs". target_pass_bytes, draft_pass_bytes: bytes of weights that a pass reads.
    kv_pages: number of pages for all sequences, each of kv_page_tokens tokens. kv_bytes: bytes of both models' K/V caches.
    draft_kv_bytes: bytes of the draft's cache, with its scratch pages for branches. recorded: number of programs recorded so
    far, for rounds of batch_sizes slots. recording_seconds, recording_bytes: their cost in time and in memory.
    """

    mode: str
    device: str
    draft_device: str | None
    dtype: str
    rounds: str
    threads: int
    target_pass_bytes: int
    draft_pass_bytes: int | None
    kv_pages: int
    kv_page_tokens: int
    kv_bytes: int
    draft_kv_bytes: int
    recorded: int
    batch_sizes: Sequence[int]
    recording_seconds: float
    recording_bytes: int


def affordable_pages(
    options: EngineOptions, models: LoadedModels, placement: Placement, scratch_pages: int, records: bool
) -> int:
    """Pages that fit both K/V caches, after reserving memory for the logits of both models, and for q, which is needed once a
    request samples.

    At most half of the memory is reserved for q: if q needs more, the draft fails later, never the target. scratch_pages:
    number of further pages in the draft's cache. records: whether rounds are recorded.
    """
    target_model, slots = models.target.model, options.max_batch
    proposed = options.speculation_options.nodes - 1
    budget = options.speculation_options.budget if models.mode == "ssd" else 0
    memory = memory_for_kv(options, placement.target_device)
    page = KVCache.bytes_a_page(target_model.config, target_model.dtype)
    memory -= min(4 * slots * (proposed + 1) * target_model.vocab_size, memory // 4)  # p's logits
    if models.draft is None:
        return max(0, memory // page)
    draft_model = models.draft.model
    draft_page = KVCache.bytes_a_page(draft_model.config, draft_model.dtype)
    row = 4 * slots * draft_model.vocab_size
    draft_tables = 2 * (budget + 1) * proposed * row  # q
    draft_tables += (proposed + 1) * row if budget else 0  # z
    draft_tables += 2 * budget * row if records else 0  # the logits of a branch step
    received = 3 * proposed * row if placement.apart else 0  # q's copy for the target, and its receive buffer
    scratch = scratch_pages * draft_page
    if placement.draft_device == placement.target_device:
        memory -= min(draft_tables + received, memory // 2) + scratch
        return max(0, memory // (page + draft_page))
    draft_memory = memory_for_kv(options, placement.draft_device)
    draft_memory -= min(draft_tables, draft_memory // 2) + scratch
    memory -= min(received, memory // 2)
    return max(0, min(memory // page, draft_memory // draft_page))
