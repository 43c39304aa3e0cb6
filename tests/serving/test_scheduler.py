"""Assigning slots and pages to requests: first come, first served; nothing is owned twice or lost."""

from __future__ import annotations

import numpy as np
import pytest

from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE
from ssd.kv.prefix import PrefixCache
from ssd.native import PageAllocator
from ssd.options import SamplingParams
from ssd.requests import Request
from ssd.serving.scheduler import GROWTH, Scheduler

SLACK = 12


class Desk:
    """A scheduler and its pages."""

    def __init__(self, slots: int = 3, pages: int = 20, identity: str | None = None) -> None:
        self.pages = PrefixCache(PageAllocator(1 + pages))
        self.scheduler = Scheduler(slots, self.pages, SLACK, identity=identity)

    def add(self, *lengths: int) -> list[Request]:
        """Add requests of these total lengths; three tokens of each are its prompt."""
        requests = [Request([7, 8, 9], SamplingParams(temperature=0.5), n - 3, 11, None) for n in lengths]
        for request in requests:
            self.scheduler.add(request)
        return requests

    def admit_all(self) -> list[Request]:
        admitted = list(iter(self.scheduler.admit, None))
        for request in admitted:
            self.scheduler.start(request)
        return admitted


def test_requests_are_admitted_in_order_to_the_lowest_slots() -> None:
    desk = Desk()
    requests = desk.add(8, 8, 8, 8)
    assert desk.admit_all() == requests[:3]
    assert [request.slot for request in requests] == [0, 1, 2, -1]
    assert desk.scheduler.batch == 3


def test_a_released_slot_goes_to_the_next_request() -> None:
    desk = Desk()
    requests = desk.add(8, 8, 8, 8, 8)
    desk.admit_all()
    desk.scheduler.release(requests[2])
    desk.scheduler.release(requests[0])
    assert desk.admit_all() == requests[3:]
    assert [request.slot for request in requests[3:]] == [0, 2]


def test_the_batch_extends_to_the_highest_slot_in_use() -> None:
    desk = Desk()
    first, second, third = desk.add(8, 8, 8)
    desk.admit_all()
    desk.scheduler.release(second)
    assert desk.scheduler.batch == 3
    desk.scheduler.release(third)
    assert desk.scheduler.batch == 1
    desk.scheduler.release(first)
    assert desk.scheduler.batch == 0
    assert not desk.scheduler.busy


@pytest.mark.parametrize("length,pages", [(20, 2), (21, 3), (36, 3), (37, 4), (200, 14)])
def test_a_request_grows_up_to_pages_for_its_length_and_one_round_more(length: int, pages: int) -> None:
    desk = Desk()
    (request,) = desk.add(length)
    desk.admit_all()
    assert request.pages is not None and len(request.pages) == 2  # its prompt, a round, and a round's slack
    while len(request.token_ids) < length - 3:
        new = desk.scheduler.grow(request, SLACK + 1)
        assert new is not None and new.pages == request.pages[new.first :].tolist()
        assert len(request.pages) * PAGE_SIZE >= min(request.length + SLACK + 1, length) + SLACK
        request.token_ids.append(5)
    assert len(request.pages) == pages
    assert desk.pages.available == desk.pages.capacity - pages


def test_a_request_gets_a_few_pages_at_a_time_while_there_are_enough() -> None:
    desk = Desk(pages=7)
    (request,) = desk.add(100)
    desk.admit_all()
    new = desk.scheduler.grow(request, 20)  # they need one page
    assert new is not None and (new.first, len(new.pages)) == (2, GROWTH)
    new = desk.scheduler.grow(request, 97)
    assert new is not None and (new.first, len(new.pages)) == (6, 1)  # all that it can ever need


def test_a_preempted_request_is_admitted_again_before_all_others() -> None:
    desk = Desk(pages=8)
    first, second, third, fourth = desk.add(100, 100, 100, 100)
    assert desk.admit_all() == [first, second, third]
    assert desk.scheduler.grow(first, 60) is None
    assert desk.scheduler.newest is third
    desk.scheduler.preempt(third)
    assert list(desk.scheduler.waiting) == [third, fourth]
    assert third.pages is None and desk.scheduler.preemptions == 1
    assert desk.scheduler.grow(first, 60) is not None
    assert desk.scheduler.admit() is None  # a page a running request must be left
    desk.scheduler.release(first)
    assert desk.admit_all() == [third, fourth]


def test_two_admitted_requests_that_begin_alike_share_their_full_pages() -> None:
    desk = Desk(identity="a model")
    prompt = list(range(50))
    first, second, other, shorter = (
        Request(tokens, SamplingParams(cache_salt=salt), 10, 0, None)
        for tokens, salt in ((prompt, None), ([*prompt[:40], 7, 8], None), (prompt, "b"), (prompt[:33], None))
    )
    for request in (first, second, other, shorter):
        desk.scheduler.add(request)
    assert desk.scheduler.admit() is first and first.stored == 0
    first.draft_reach = 20
    desk.scheduler.start(first)
    assert desk.scheduler.admit() is second and (second.stored, second.draft_stored) == (32, 16)
    assert second.pages is not None and first.pages is not None
    assert second.pages[:2].tolist() == first.pages[:2].tolist() and second.pages[2] not in first.pages
    assert desk.scheduler.admit() is other and other.stored == 0  # another salt
    desk.scheduler.check_integrity()
    desk.scheduler.release(first)
    assert desk.scheduler.admit() is shorter and shorter.stored == 32
    for request in (second, other, shorter):
        desk.scheduler.release(request)
    desk.scheduler.check_integrity()
    assert desk.pages.available == desk.pages.capacity and desk.pages.kept == 3


def test_the_last_page_to_store_is_not_shared() -> None:
    """Rounds write to the last token of a prompt again, and a resumed request has its newest token still to store."""
    desk = Desk(identity="a model")
    first, second = (Request(list(range(33)), SamplingParams(), 10, 0, None) for _ in range(2))
    desk.scheduler.add(first)
    desk.scheduler.start(desk.scheduler.admit() or first)
    desk.scheduler.preempt(first)
    first.token_ids.append(5)
    assert first.to_store == 33
    assert desk.scheduler.admit() is first and first.stored == 16 * (first.to_store // 16 - 1)
    second.prompt = second.prompt[:32]
    desk.scheduler.add(second)
    assert desk.scheduler.admit() is second and second.stored == 16


def test_no_page_is_owned_twice() -> None:
    desk = Desk()
    requests = desk.add(32, 64, 96)
    desk.admit_all()
    owned = np.concatenate([request.pages for request in requests])  # type: ignore[misc]
    assert len(set(owned.tolist())) == len(owned)
    assert 0 not in owned  # the null page


def test_a_request_waits_until_pages_for_its_prompt_are_available() -> None:
    desk = Desk(pages=8)
    small, large, other = desk.add(36, 84, 36)
    large.prompt, large.max_new_tokens = list(range(80)), 4
    assert desk.admit_all() == [small]  # no later request overtakes the one that waits
    assert desk.pages.available == 6
    desk.scheduler.release(small)
    assert desk.admit_all() == [large]
    desk.scheduler.release(large)
    assert desk.admit_all() == [other]


def test_releasing_gives_every_page_back_once() -> None:
    desk = Desk()
    requests = desk.add(32, 64, 96, 32)
    desk.admit_all()
    for request in requests:
        desk.scheduler.release(request)
        desk.scheduler.release(request)  # a finished request is released again when its call ends
    assert desk.pages.available == desk.pages.capacity
    assert not desk.scheduler.busy


def test_a_waiting_request_is_dropped_when_it_is_released() -> None:
    desk = Desk(slots=1)
    first, second = desk.add(8, 8)
    desk.admit_all()
    desk.scheduler.release(second)
    desk.scheduler.release(first)
    assert desk.scheduler.admit() is None
    assert not desk.scheduler.busy


def test_rounds_do_not_cover_a_request_whose_prompt_is_still_being_stored() -> None:
    desk = Desk()
    first, second = desk.add(8, 8)
    desk.scheduler.start(desk.scheduler.admit() or first)
    assert desk.scheduler.admit() is second
    assert desk.scheduler.batch == 1
    assert set(desk.scheduler.admitted) == {0, 1}


def test_a_page_that_is_held_twice_or_lost_is_detected() -> None:
    desk = Desk()
    first, second = desk.add(8, 8)
    desk.admit_all()
    desk.scheduler.check_integrity()
    second.pages = first.pages
    with pytest.raises(RuntimeError, match="twice"):
        desk.scheduler.check_integrity()


def test_a_request_that_all_pages_cannot_hold_is_refused() -> None:
    desk = Desk(pages=4)
    fits, too_long = desk.add(52, 53)
    desk.scheduler.check(fits)
    with pytest.raises(SsdError, match="5 pages.*holds 4"):
        desk.scheduler.check(too_long)
