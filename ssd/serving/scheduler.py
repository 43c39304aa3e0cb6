"""The scheduler: gives requests their sequence slots and K/V pages. It works on the host and touches no tensor.

First come, first served. The oldest request is admitted when a slot is free, and pages for its tokens and its first round. Its
full pages come from earlier requests where they began alike (ssd/kv/prefix.py). A running request gets further pages before the
round that may write to them. Where none is left, the newest request is preempted: it gives its slot and pages back and waits,
before all others, to be admitted again. So the requests that run are always the oldest ones, and the very oldest never waits.
The lowest slots are filled first, and a round covers the slots up to the highest running one.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

import numpy as np

from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE
from ssd.kv.prefix import Key, PrefixCache, page_key, root_key
from ssd.requests import Request

GROWTH = 4  # pages that a growing sequence gets at a time, where they are available: few writes, and little is reserved


class NewPages(NamedTuple):
    """Pages that a request has got. first: the index of the first one among its pages."""

    first: int
    pages: list[int]


class Scheduler:
    """slots: number of sequences that run at once. slack: number of tokens that a round may store after a sequence's last
    token.

    remedy: imperative phrase that tells the user how to get more pages. identity: names the models and formats whose K/V is
    stored; None where pages are not shared.
    """

    def __init__(
        self, slots: int, pages: PrefixCache, slack: int, remedy: str = "free some memory", identity: str | None = None
    ) -> None:
        self.pages = pages
        self.preemptions = 0
        self._slack = slack
        self._remedy = remedy
        self._identity = identity
        self._free_slots = list(range(slots))
        self.waiting: deque[Request] = deque()
        self.admitted: dict[
            int, Request
        ] = {}  # by slot, oldest first: requests with pages, whose prompts are stored or being stored
        self.running: dict[int, Request] = {}  # by slot: requests whose prompts are stored

    @property
    def batch(self) -> int:
        """Number of slots that a round must cover."""
        return max(self.running, default=-1) + 1

    @property
    def busy(self) -> bool:
        return bool(self.admitted or self.waiting)

    @property
    def newest(self) -> Request:
        """The request that was admitted last."""
        return next(reversed(self.admitted.values()))

    def check(self, request: Request) -> None:
        """Raise SsdError for a request that all pages together could not hold."""
        if (needed := self._pages_for(request, request.max_length)) > self.pages.capacity:
            raise SsdError(
                f"the prompt and its output need {needed} pages of K/V and memory holds {self.pages.capacity}; lower max_new_tokens, "
                f"or {self._remedy}."
            )

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def admit(self) -> Request | None:
        """Give the oldest waiting request a slot and pages for its tokens and one round, if there are enough.

        Each running request must be able to grow by a page besides.
        """
        if not self.waiting or not self._free_slots:
            return None
        request = self.waiting[0]
        # The last page of those to store is not shared: rounds write to its last token again.
        found = self.pages.find(self._keys(request, (request.to_store - 1) // PAGE_SIZE))
        new = self._pages_for(request, request.length + self._slack) - len(found)
        if not self.pages.new_pages_fit(new + len(self.admitted), found):
            return None
        self.waiting.popleft()
        request.slot = heapq.heappop(self._free_slots)
        request.pages = np.concatenate([self.pages.hold(found), self.pages.allocate(new)])
        request.stored = len(found) * PAGE_SIZE
        by_draft = next((i for i, kept in enumerate(found) if not kept.by_draft), len(found))
        request.draft_stored = by_draft * PAGE_SIZE
        self.admitted[request.slot] = request
        return request

    def start(self, request: Request) -> None:
        """Let rounds cover an admitted request from now on: its prompt is stored."""
        self.running[request.slot] = request
        self._keep(request)

    def grow(self, request: Request, tokens: int) -> NewPages | None:
        """Give a running request pages for its present and `tokens` further tokens.

        Returns the new pages, perhaps none; or None, and gives none, if too few are available.
        """
        assert request.pages is not None
        held = len(request.pages)
        missing = self._pages_for(request, request.length + tokens) - held
        if missing <= 0:
            return NewPages(held, [])
        if missing > self.pages.available:
            return None
        most = self._pages_for(request, request.max_length) - held
        new = self.pages.allocate(min(max(missing, GROWTH), most, self.pages.available))
        request.pages = np.concatenate([request.pages, new])
        return NewPages(held, new.tolist())

    def preempt(self, request: Request) -> None:
        """Take an admitted request's slot and pages back. It is the next one to be admitted, and goes on where it was."""
        self.preemptions += 1
        self.release(request)
        self.waiting.appendleft(request)

    def release(self, request: Request) -> None:
        """Take a request's slot and pages back, or remove it from the queue. Does nothing if it has neither any more.

        Its full pages are kept.
        """
        if request in self.waiting:
            self.waiting.remove(request)
        if request.pages is None:
            return
        self._keep(request)
        del self.admitted[request.slot]
        self.running.pop(request.slot, None)
        self.pages.release(request.pages)
        heapq.heappush(self._free_slots, request.slot)
        request.pages = None

    def check_idle(self) -> None:
        """Raise RuntimeError if a page has a holder although no request has a slot. Cheap: it looks at no single page."""
        if self.pages.available != self.pages.capacity:
            raise RuntimeError(
                f"K/V pages were lost: nothing runs, and {self.pages.available} of {self.pages.capacity} are available."
            )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is free, or has exactly the requests that name it, and the cache, as holders."""
        admitted = (request.pages for request in self.admitted.values())
        self.pages.check_integrity([int(page) for pages in admitted if pages is not None for page in pages])

    def _pages_for(self, request: Request, tokens: int) -> int:
        """Number of pages for a request of `tokens` tokens and a round, at most those that it can ever need."""
        return -(-(min(tokens, request.max_length) + self._slack) // PAGE_SIZE)

    def _keep(self, request: Request) -> None:
        """Keep the full pages of a request to which no round writes any more."""
        assert request.pages is not None
        running = self.running.get(request.slot) is request
        stored, by_draft = (request.to_store,) * 2 if running else (request.stored, request.draft_stored)
        # A round writes from the last token on, and a draft that lags behind begins two tokens earlier.
        pages, drafted = ((min(tokens, stored - 2)) // PAGE_SIZE for tokens in (stored, min(by_draft, request.draft_reach)))
        if pages > 0:
            self.pages.keep(self._keys(request, pages), request.pages, drafted)

    def _keys(self, request: Request, count: int) -> list[Key]:
        """The keys of a request's first pages; none where pages are not shared."""
        if self._identity is None:
            return []
        keys, tokens = request.page_keys, request.tokens
        for start in range(len(keys) * PAGE_SIZE, count * PAGE_SIZE, PAGE_SIZE):
            parent = keys[-1] if keys else root_key(self._identity, request.params.cache_salt)
            keys.append(page_key(parent, tokens[start : start + PAGE_SIZE]))
        return keys[:count]
