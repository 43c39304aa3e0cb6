"""A prompt is stored from the staging tables; until then its slot is a finished one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssd.decoding.prefill import chunk_rows, stage
from ssd.decoding.state import SequenceState
from ssd.kv.cache import PAGE_SIZE
from ssd.options import SamplingParams
from ssd.requests import Request
from ssd.runtime.executor import EagerExecutor
from ssd.runtime.trace import Trace

CPU = torch.device("cpu")


@pytest.fixture
def request_() -> Request:
    request = Request(list(range(40, 70)), SamplingParams(temperature=0.5), 5, 11, None)
    request.pages = np.array([7, 3, 9], dtype=np.int32)
    return request


@pytest.fixture
def staging(request_: Request) -> SequenceState:
    staging = SequenceState.allocate(1, 64, 4, (0,), CPU)
    staging.page_table.fill_(5)  # an earlier prompt's
    stage(staging, EagerExecutor(Trace()), request_)
    return staging


def test_staging_writes_the_tokens_pages_and_parameters_of_a_request(staging: SequenceState, request_: Request) -> None:
    assert staging.tokens[0, :30].tolist() == request_.prompt
    assert (int(staging.length), int(staging.last_token), int(staging.max_length), int(staging.done)) == (29, 69, 35, 0)
    assert (float(staging.temperature), int(staging.seed)) == (0.5, 11)
    assert staging.page_table.tolist() == [[7, 3, 9, 0]]


def test_a_chunk_has_the_rows_of_its_tokens(staging: SequenceState, request_: Request) -> None:
    rows = chunk_rows(staging, 14, 18)
    assert rows.ids.tolist() == request_.prompt[14:18]
    assert rows.positions.tolist() == [14, 15, 16, 17]
    assert rows.kv_slots.tolist() == [7 * PAGE_SIZE + 14, 7 * PAGE_SIZE + 15, 3 * PAGE_SIZE, 3 * PAGE_SIZE + 1]
    assert rows.prefix_len.tolist() == [15, 16, 17, 18]


def test_only_the_named_slot_becomes_a_copy_of_the_staged_row(staging: SequenceState) -> None:
    state = SequenceState.allocate(3, 64, 4, (0,), CPU)
    state.only(1).copy_from(staging)
    assert state.done.tolist() == [1, 0, 1]
    assert state.page_table.tolist() == [[0] * 4, [7, 3, 9, 0], [0] * 4]
    assert state.tokens[1].tolist() == staging.tokens[0].tolist()


def test_a_slot_that_is_switched_off_is_done_and_names_no_page(staging: SequenceState) -> None:
    staging.retire(0)
    assert int(staging.done) == 1
    assert not staging.page_table.any()
