"""What a round leaves for the host: tables packed on the device, and the same numbers read row by row."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch

from ops.cases import i32
from ssd.decoding.round import Reports, Round, Seen, SlotReport

NOTHING: Any = None


def test_a_report_unpacked_on_the_host_equals_the_packed_values() -> None:
    packed = torch.zeros(3, Reports.width(nodes=3), dtype=torch.int32)
    columns = ([7, 9, 4], [0, 1, 2], [2, -1, 1], [3, 0, 1], [1, 0, 0], [0, 0, 1], [[5, 6, 7], [8, 9, 10], [2, 3, 4]])
    values = [i32(column) for column in columns]
    for field, value in zip(fields(Reports), values, strict=True):
        getattr(Reports.unpack(packed), field.name).copy_(value)
    assert packed.tolist() == [[7, 0, 2, 3, 1, 0, 5, 6, 7], [9, 1, -1, 0, 0, 0, 8, 9, 10], [4, 2, 1, 1, 0, 1, 2, 3, 4]]
    assert [SlotReport.of(row) for row in packed.tolist()] == [
        SlotReport(length=7, done=False, failed=False, accepted=2, proposed=3, hit=True, bad=False, newest=[5, 6, 7]),
        SlotReport(length=9, done=True, failed=False, accepted=-1, proposed=0, hit=False, bad=False, newest=[8, 9, 10]),
        SlotReport(length=4, done=True, failed=True, accepted=1, proposed=1, hit=False, bad=True, newest=[2, 3, 4]),
    ]


def test_an_unpacked_report_is_a_view_of_its_table() -> None:
    packed = torch.zeros(2, Reports.width(nodes=4), dtype=torch.int32)
    Reports.unpack(packed[1:]).done.fill_(1)
    Reports.unpack(packed).newest.fill_(6)
    assert [SlotReport.of(row) for row in packed.tolist()] == [
        SlotReport(0, done, False, 0, 0, False, False, [6] * 4) for done in (False, True)
    ]


def test_a_slot_without_a_look_up_has_no_outcome() -> None:
    packed = i32([[1, 4, 2, 17], [-1, -1, -1, -1]])
    round = Round(NOTHING, NOTHING, seen=packed)
    assert round.outcomes == [Seen(after_hit=True, spec_len=4, k=2, rank=17), None]
    assert [round.rank(slot) for slot in (0, 1)] == [17, -1]


def test_a_round_without_a_cache_has_no_ranks() -> None:
    round = Round(NOTHING, NOTHING, drafting=SimpleNamespace())  # type: ignore[arg-type]
    assert round.outcomes == [] and round.rank(3) == -1
