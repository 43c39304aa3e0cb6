"""Assigning slots and pages to requests: first come, first served; nothing is owned twice or lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssd.decoding.state import SequenceState
from ssd.native import PageAllocator
from ssd.options import SamplingParams
from ssd.runtime.executor import EagerExecutor
from ssd.runtime.trace import Trace
from ssd.serving.scheduler import Request, Scheduler

PAGE_SIZE, SLACK = 4, 3


class Desk:
    """A scheduler with its tables and pages."""

    def __init__(self, slots: int = 3, pages: int = 20) -> None:
        self.state = SequenceState.allocate(slots, 64, 16, (0,), torch.device("cpu"))
        self.pages = PageAllocator(1 + pages)
        self.scheduler = Scheduler(self.state, self.pages, PAGE_SIZE, SLACK, EagerExecutor(Trace()))

    def add(self, *lengths: int) -> list[Request]:
        """Add requests of these total lengths; three tokens of each are its prompt."""
        requests = [Request([7, 8, 9], SamplingParams(max_new_tokens=n - 3, temperature=0.5), 11, None) for n in lengths]
        for request in requests:
            self.scheduler.add(request)
        return requests

    def admit_all(self) -> list[Request]:
        return list(iter(self.scheduler.admit, None))


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


@pytest.mark.parametrize("length,pages", [(5, 2), (6, 3), (9, 3), (10, 4)])
def test_a_request_owns_pages_for_its_length_and_one_round_more(length: int, pages: int) -> None:
    desk = Desk()
    (request,) = desk.add(length)
    desk.admit_all()
    assert request.pages is not None and len(request.pages) == pages
    assert desk.pages.available == desk.pages.capacity - pages


def test_no_page_is_owned_twice() -> None:
    desk = Desk()
    requests = desk.add(8, 16, 24)
    desk.admit_all()
    owned = np.concatenate([request.pages for request in requests])  # type: ignore[misc]
    assert len(set(owned.tolist())) == len(owned)
    assert 0 not in owned  # the null page


def test_a_request_waits_until_all_its_pages_are_free() -> None:
    desk = Desk(pages=8)
    small, large, other = desk.add(9, 21, 9)
    assert desk.admit_all() == [small]  # no later request overtakes the one that waits
    assert desk.pages.available == 5
    desk.scheduler.release(small)
    assert desk.admit_all() == [large]
    desk.scheduler.release(large)
    assert desk.admit_all() == [other]


def test_releasing_gives_every_page_back_once() -> None:
    desk = Desk()
    requests = desk.add(8, 16, 24, 8)
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


def test_admission_fills_the_slots_row() -> None:
    desk = Desk()
    desk.add(8)
    (request,) = desk.admit_all()
    row = desk.state.only(0)
    assert row.tokens[0, :3].tolist() == [7, 8, 9]
    assert (int(row.length), int(row.last_token), int(row.max_length), int(row.done)) == (2, 9, 8, 0)
    assert (float(row.temperature), int(row.seed)) == (0.5, 11)
    assert request.pages is not None
    assert row.page_table[0, : len(request.pages)].tolist() == request.pages.tolist()


def test_a_released_slot_is_done_and_has_an_empty_page_table() -> None:
    desk = Desk()
    (request,) = desk.add(8)
    desk.admit_all()
    desk.scheduler.release(request)
    assert int(desk.state.done[0]) == 1
    assert not desk.state.page_table[0].any()
