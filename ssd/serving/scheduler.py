"""The scheduler: gives requests their sequence slots and K/V pages. It works on the host and touches no tensor.

First come, first served: the oldest request is admitted when a slot and all pages that it can ever need are free. So a running
request never waits for memory. The lowest slots are filled first, and a round covers the slots up to the highest running one.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque

from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE
from ssd.native import PageAllocator
from ssd.requests import Request


class Scheduler:
    """slots: number of sequences that run at once. slack: number of tokens that a round may store after a sequence's last
    token.

    remedy: imperative phrase that tells the user how to get more pages.
    """

    def __init__(self, slots: int, pages: PageAllocator, slack: int, remedy: str = "free some memory") -> None:
        self.pages = pages
        self._slack = slack
        self._remedy = remedy
        self._free_slots = list(range(slots))
        self.waiting: deque[Request] = deque()
        self.admitted: dict[int, Request] = {}  # by slot: requests with pages, whose prompts are being stored, or that run
        self.running: dict[int, Request] = {}  # by slot: requests whose prompts are stored

    @property
    def batch(self) -> int:
        """Number of slots that a round must cover."""
        return max(self.running, default=-1) + 1

    @property
    def busy(self) -> bool:
        return bool(self.admitted or self.waiting)

    def pages_for(self, request: Request) -> int:
        return -(-(request.max_length + self._slack) // PAGE_SIZE)

    def check(self, request: Request) -> None:
        """Raise SsdError for a request that all pages together could not hold."""
        if (needed := self.pages_for(request)) > self.pages.capacity:
            raise SsdError(
                f"the prompt and its output need {needed} pages of K/V and memory holds {self.pages.capacity}; lower max_new_tokens, "
                f"or {self._remedy}."
            )

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def admit(self) -> Request | None:
        """Give the oldest waiting request a slot and its pages, if both are free."""
        if not self.waiting or not self._free_slots or self.pages_for(self.waiting[0]) > self.pages.available:
            return None
        request = self.waiting.popleft()
        request.slot = heapq.heappop(self._free_slots)
        request.pages = self.pages.allocate(self.pages_for(request))
        self.admitted[request.slot] = request
        return request

    def start(self, request: Request) -> None:
        """Let rounds cover an admitted request from now on: its prompt is stored."""
        self.running[request.slot] = request

    def release(self, request: Request) -> None:
        """Take a request's slot and pages back, or remove it from the queue. Does nothing if it has neither any more."""
        if request in self.waiting:
            self.waiting.remove(request)
        if request.pages is None:
            return
        del self.admitted[request.slot]
        self.running.pop(request.slot, None)
        self.pages.free(request.pages)
        heapq.heappush(self._free_slots, request.slot)
        request.pages = None

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is free or has exactly the admitted requests that name it as holders."""
        holders = Counter(
            page for request in self.admitted.values() for page in (request.pages if request.pages is not None else ())
        )
        miscounted = [int(page) for page, count in holders.items() if self.pages.holders(int(page)) != count]
        if miscounted or len(holders) + self.pages.available != self.pages.capacity:
            raise RuntimeError(
                f"K/V pages were lost or given twice: {len(holders)} held, {self.pages.available} free, {self.pages.capacity} in all, "
                f"{miscounted} with a wrong count."
            )
