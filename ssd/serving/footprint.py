"""The memory that an engine takes, and the number of K/V pages that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ssd.kv.cache import PAGE_SIZE, KVCache, KVShape
from ssd.options import EngineOptions


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


class KVModel(Protocol):
    """The part of a model that determines the memory beside its weights. vocab_size: columns of its logits."""

    @property
    def config(self) -> KVShape: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def vocab_size(self) -> int: ...


def affordable_pages(
    options: EngineOptions,
    target: KVModel,
    draft: KVModel | None,
    branches: int,
    memory: int,
    draft_memory: int | None,
    apart: bool,
    records: bool,
) -> int:
    """Pages that fit both K/V caches, after reserving memory for the logits of both models, and for q, which is needed once a
    request samples.

    At most half of the memory is reserved for q: if q needs more, the draft fails later, never the target. branches: number
    of branches of a sequence, 0 in mode "sd". memory: bytes beside the weights, on the target's device. draft_memory: the
    same for a draft on a device of its own; None if they share one. apart: whether each role has tables of its own. records:
    whether rounds are recorded.
    """
    slots, proposed = options.max_batch, options.speculation_options.nodes - 1
    page = KVCache.bytes_a_page(target.config, target.dtype)
    memory -= min(4 * slots * (proposed + 1) * target.vocab_size, memory // 4)  # p's logits
    if draft is None:
        return max(0, memory // page)
    draft_page = KVCache.bytes_a_page(draft.config, draft.dtype)
    row = 4 * slots * draft.vocab_size
    draft_tables = 2 * (branches + 1) * proposed * row  # q
    draft_tables += (proposed + 1) * row if branches else 0  # z
    draft_tables += 2 * branches * row if records else 0  # the logits of a branch step
    received = 3 * proposed * row if apart else 0  # q's copy for the target, and its receive buffer
    scratch = scratch_pages(options, branches) * draft_page
    if draft_memory is None:
        memory -= min(draft_tables + received, memory // 2) + scratch
        return max(0, memory // (page + draft_page))
    draft_memory -= min(draft_tables, draft_memory // 2) + scratch
    memory -= min(received, memory // 2)
    return max(0, min(memory // page, draft_memory // draft_page))


def scratch_pages(options: EngineOptions, branches: int) -> int:
    """Pages in the draft's cache for the keys of branches, besides those of the sequences."""
    return -(-options.max_batch * branches * (options.speculation_options.nodes - 1) // PAGE_SIZE)


def pages_a_sequence(options: EngineOptions, tokens: int) -> int:
    """Pages of a sequence of so many tokens, with those that a round may propose beyond its end."""
    return -(-(tokens + options.speculation_options.nodes - 1) // PAGE_SIZE)
