"""Requests to sequence slots: who waits, who runs, and which K/V pages each one owns.

A request is admitted when a slot is free and the pages it can ever need are free too, so a running request never waits for memory.
Slots are filled lowest first: the batch is the slots up to the highest one in use.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from ssd.decoding.state import SequenceState
from ssd.decoding.stats import SequenceStats
from ssd.models.tokenizer import TextStream
from ssd.native import PageAllocator
from ssd.options import SamplingParams
from ssd.runtime.executor import Executor


@dataclass(eq=False)
class Request:
    """One prompt on its way, on the host."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    text_stream: TextStream | None  # None without a tokenizer
    stats: SequenceStats = field(default_factory=SequenceStats)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    degraded: bool = False
    slot: int = -1
    pages: np.ndarray | None = None

    @property
    def max_length(self) -> int:
        return len(self.prompt) + self.params.max_new_tokens

    def take(self, ids: list[int]) -> None:
        """Append tokens committed by the device; a stop string ends the request at the token that completes it."""
        for token in ids:
            self.token_ids.append(token)
            if self.text_stream is not None:
                self.text += self.text_stream.push([token])
                if self.params.stop and self._stopped():
                    return

    def finish(self, reason: str) -> None:
        if self.text_stream is not None:
            self.text += self.text_stream.flush()
            if self.params.stop and self._stopped():
                return
        self.finish_reason = reason

    def _stopped(self) -> bool:
        found = [at for at in (self.text.find(stop) for stop in self.params.stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"
        return bool(found)

    def certain_text(self) -> str:
        """The text that no stop string can take back."""
        if self.finish_reason is not None:
            return self.text
        held = 0
        for stop in self.params.stop:
            held = max([held, *(k for k in range(1, len(stop)) if self.text.endswith(stop[:k]))])
        return self.text[: len(self.text) - held]


class Scheduler:
    """Admits requests first come, first served. slack: tokens a round may store beyond a sequence's last."""

    def __init__(self, state: SequenceState, pages: PageAllocator, page_size: int, slack: int, executor: Executor) -> None:
        self._state = state
        self._executor = executor
        self._pages = pages
        self._page_size = page_size
        self._slack = slack
        self._waiting: deque[Request] = deque()
        self._free_slots = list(range(len(state.done)))
        self.running: dict[int, Request] = {}

    @property
    def batch(self) -> int:
        """Slots a round must cover."""
        return max(self.running, default=-1) + 1

    @property
    def busy(self) -> bool:
        return bool(self.running or self._waiting)

    def pages_for(self, request: Request) -> int:
        return -(-(request.max_length + self._slack) // self._page_size)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def admit(self) -> Request | None:
        """Give the next request a slot and its pages, if there are any."""
        if not self._waiting or not self._free_slots or self.pages_for(self._waiting[0]) > self._pages.available:
            return None
        request = self._waiting.popleft()
        request.slot = heapq.heappop(self._free_slots)
        request.pages = self._pages.allocate(self.pages_for(request))
        self.running[request.slot] = request
        slot, length, pages = request.slot, len(request.prompt), torch.from_numpy(request.pages)
        with self._executor.alone(), self._executor.on("target"):
            state = self._state
            self._executor.write("target", state.tokens[slot, :length], torch.tensor(request.prompt, dtype=torch.int32))
            self._executor.write("target", state.page_table[slot, : len(pages)], pages)
            state.admit(slot, length, request.prompt[-1], request.params, request.seed, request.max_length)
        return request

    def release(self, request: Request) -> None:
        """Take a request's slot and pages back, or forget that it waits."""
        if request in self._waiting:
            self._waiting.remove(request)
        if request.pages is None:
            return
        del self.running[request.slot]
        with self._executor.alone(), self._executor.on("target"):  # rounds under way end before its pages are another's
            self._state.retire(request.slot)
        self._pages.free(request.pages)
        heapq.heappush(self._free_slots, request.slot)
        request.pages = None
