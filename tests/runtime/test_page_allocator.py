"""Pages of the K/V cache: none is lost, none has two owners unless it is shared, and errors change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ssd.native import PageAllocator


class Pages(RuleBasedStateMachine):
    """Any sequence of allocations, holds and frees, compared with a list that has one entry per holder."""

    CAPACITY = 12

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(self.CAPACITY + 1)
        self.held: list[int] = []

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.allocator.available))
        pages = self.allocator.allocate(count)
        assert pages.dtype == np.int32
        assert pages.shape == (count,)
        assert all(1 <= page <= self.CAPACITY for page in pages), "the null page, or none of ours"
        assert not set(pages.tolist()) & set(self.held), "one page for two owners"
        assert len(set(pages.tolist())) == count
        self.held += pages.tolist()

    @rule(extra=st.integers(1, 5))
    def ask_for_too_many(self, extra: int) -> None:
        with pytest.raises(RuntimeError, match="^No pages left: "):
            self.allocator.allocate(self.allocator.available + extra)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        freed = data.draw(st.lists(st.sampled_from(range(len(self.held))), unique=True))
        self.allocator.free(np.array([self.held[i] for i in freed], np.int32))
        self.held = [page for i, page in enumerate(self.held) if i not in freed]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        shared = data.draw(st.lists(st.sampled_from(self.held), max_size=4))
        self.allocator.hold(np.array(shared, np.int32))
        self.held += shared

    @rule(page=st.integers(1, CAPACITY))
    def hold_a_free_page(self, page: int) -> None:
        if page not in self.held:
            with pytest.raises(ValueError, match=f"^Page {page} is free"):
                self.allocator.hold(np.array([*self.held, page], np.int32))

    @precondition(lambda self: self.held)
    @rule(page=st.sampled_from([-1, 0, CAPACITY + 1, 2**31 - 1]))
    def free_a_foreign_page(self, page: int) -> None:
        with pytest.raises(ValueError, match=f"^Page {page} is not a page of this allocator"):
            self.allocator.free(np.array([self.held[0], page], np.int32))

    @precondition(lambda self: self.held)
    @rule()
    def free_a_page_too_often(self) -> None:
        page = self.held[0]
        with pytest.raises(ValueError, match=f"^Page {page} is already free"):
            self.allocator.free(np.array([page] * (self.held.count(page) + 1), np.int32))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.allocator.capacity == self.CAPACITY
        assert self.allocator.available + len(set(self.held)) == self.CAPACITY
        assert all(self.allocator.holders(page) == self.held.count(page) for page in range(1, self.CAPACITY + 1))


TestPageAllocator = Pages.TestCase


def test_a_fresh_allocator_hands_out_the_lowest_pages_first() -> None:
    assert PageAllocator(6).allocate(3).tolist() == [1, 2, 3]


def test_a_page_freed_twice_in_two_calls_is_detected() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(ValueError, match="^Page 1 is already free"):
        allocator.free(pages)


def test_an_allocator_without_room_for_the_null_page_is_refused() -> None:
    with pytest.raises(ValueError, match="^num_pages is 0"):
        PageAllocator(0)
