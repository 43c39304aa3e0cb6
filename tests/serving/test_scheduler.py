"""Assigning slots and pages to requests: first come, first served; nothing is owned twice or lost."""

from __future__ import annotations

import numpy as np
import pytest

from ssd.errors import SsdError
from ssd.kv.prefix import PrefixCache
from ssd.native import PageAllocator
from ssd.options import SamplingParams
from ssd.requests import Request
from ssd.serving.scheduler import Scheduler

SLACK = 12


class Desk:
    """A scheduler and its pages."""

    def __init__(self, slots: int = 3, pages: int = 20) -> None:
        self.pages = PrefixCache(PageAllocator(1 + pages))
        self.scheduler = Scheduler(slots, self.pages, SLACK)

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


@pytest.mark.parametrize("length,pages", [(20, 2), (21, 3), (36, 3), (37, 4)])
def test_a_request_owns_pages_for_its_length_and_one_round_more(length: int, pages: int) -> None:
    desk = Desk()
    (request,) = desk.add(length)
    desk.admit_all()
    assert request.pages is not None and len(request.pages) == pages
    assert desk.pages.available == desk.pages.capacity - pages


def test_no_page_is_owned_twice() -> None:
    desk = Desk()
    requests = desk.add(32, 64, 96)
    desk.admit_all()
    owned = np.concatenate([request.pages for request in requests])  # type: ignore[misc]
    assert len(set(owned.tolist())) == len(owned)
    assert 0 not in owned  # the null page


def test_a_request_waits_until_all_its_pages_are_free() -> None:
    desk = Desk(pages=8)
    small, large, other = desk.add(36, 84, 36)
    assert desk.admit_all() == [small]  # no later request overtakes the one that waits
    assert desk.pages.available == 5
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
