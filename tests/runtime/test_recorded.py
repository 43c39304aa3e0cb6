"""Recorded programs: steps, conditions, errors and spans of `Program` and `RecordedExecutor`."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor

from ssd import ops
from ssd.errors import SsdError
from ssd.native import Program
from ssd.runtime.recorded import RecordedExecutor
from ssd.runtime.trace import Trace


@pytest.fixture
def executor() -> RecordedExecutor:
    return RecordedExecutor(Trace())


def table(*rows: float) -> Tensor:
    return torch.tensor(rows)[:, None].repeat(1, 4)


TWO = torch.full((4,), 2.0)


def double_norm(x: Tensor) -> Tensor:
    return ops.rms_norm(ops.rms_norm(x, TWO, 0.0), TWO, 0.0)


def test_a_program_runs_on_the_values_that_its_tables_have_then(executor: RecordedExecutor) -> None:
    x, runs = table(1.0, -3.0), []

    def program() -> Tensor:
        runs.append(1)
        return ops.rms_norm(x.view(2, 4)[1:], TWO, 0.0)

    first = executor.run("target", "p", program, 1).value
    assert first.tolist() == [[-2.0] * 4]
    x[1] = 5.0
    second = executor.run("target", "p", program, 1).value
    assert second.tolist() == [[2.0] * 4]
    assert second.data_ptr() == first.data_ptr() and len(runs) == 1
    assert (executor.recorded.programs, executor.recorded.bytes) == (1, 16)


def test_programs_are_told_apart_by_lane_name_slots_and_key(executor: RecordedExecutor) -> None:
    weight, x = torch.ones(4), table(2.0)
    for lane, name, n, key in (
        ("target", "p", 1, None),
        ("target", "p", 2, None),
        ("target", "p", 1, 1),
        ("target", "q", 1, 1),
    ):
        executor.run(lane, name, lambda: ops.rms_norm(x, weight, 0.0), n, key)
    assert executor.recorded.programs == 4


def test_a_program_keeps_the_memory_of_its_steps(executor: RecordedExecutor) -> None:
    x = table(1.0)
    value = executor.run("target", "p", lambda: double_norm(x), 1).value
    gc.collect()
    rubbish = [torch.full((4,), float("nan")) for _ in range(1000)]
    assert executor.run("target", "p", lambda: double_norm(x), 1).value.tolist() == [[2.0] * 4]
    assert value.tolist() == [[2.0] * 4] and rubbish


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_a_condition_is_decided_at_each_run(executor: RecordedExecutor, dtype: torch.dtype) -> None:
    flags, ids, out = torch.zeros(3, dtype=dtype), torch.tensor([1], dtype=torch.int32), []
    source = torch.arange(8.0).view(2, 4)

    def program() -> None:
        executor.when(flags, lambda: out.append(ops.embed(ids, source)))

    executor.run("target", "p", program, 1)
    out[0].fill_(-1)
    executor.run("target", "p", program, 1)
    assert out[0].tolist() == [[-1.0] * 4]
    flags[2] = 256 if dtype == torch.int32 else 1  # not in the lowest byte
    executor.run("target", "p", program, 1)
    assert out[0].tolist() == source[1:].tolist()


def test_an_error_of_a_step_is_raised_and_later_steps_do_not_run(executor: RecordedExecutor) -> None:
    length, tokens = torch.tensor([0], dtype=torch.int32), torch.arange(4, dtype=torch.int32)[None]
    pages, x, weight = torch.zeros(1, 4, dtype=torch.int32), table(1.0), torch.ones(4)
    outs: list[Tensor] = []

    def program() -> None:
        ops.tree_rows(tokens, tokens[:, :0].contiguous(), length, pages, None, 1, 0, 1, 0)
        outs.append(ops.rms_norm(x, weight, 0.0))

    executor.run("target", "p", program, 1)
    outs[0].fill_(-1)
    length[0] = 9
    with pytest.raises(RuntimeError, match=r"length\[0\] is 9"):
        executor.run("target", "p", program, 1)
    assert outs[0].tolist() == [[-1.0] * 4]
    length[0] = 1
    executor.run("target", "p", program, 1)
    assert outs[0].tolist() == [[1.0] * 4]


def test_any_other_op_is_refused_by_name_and_nothing_is_kept(executor: RecordedExecutor) -> None:
    x = table(1.0)
    with pytest.raises(SsdError, match=r"aten\.add"):
        executor.run("target", "p", lambda: x + 1, 1)
    with pytest.raises(SsdError, match=r"aten\.mul_"):
        executor.run("target", "p", lambda: x.mul_(2), 1)
    assert executor.run("target", "p", lambda: double_norm(x), 1).value.tolist() == [[2.0] * 4]
    assert double_norm(x).tolist() == [[2.0] * 4]  # this thread records no more


def test_one_thread_records_one_program() -> None:
    program = Program()
    program.begin()
    with pytest.raises(RuntimeError, match="records another program"):
        Program().begin()
    threading.Thread(target=lambda: double_norm(table(1.0))).start()
    assert len(program) == 0
    program.end()


def test_the_spans_within_a_program_have_the_times_of_each_run(executor: RecordedExecutor) -> None:
    trace, x, flags = executor.trace, table(1.0), torch.zeros(1, dtype=torch.uint8)

    def program() -> None:
        with trace.span("draft", "outer"):
            double_norm(x)
        with trace.span("draft", "second"):
            executor.when(flags, inner)

    def inner() -> None:
        with trace.span("draft", "inner", batch=1):
            double_norm(x)

    executor.run("target", "p", program, 1)
    trace.record()
    executor.run("target", "p", program, 1)
    flags[0] = 1
    executor.run("target", "p", program, 1)
    names = [span.name for span in trace.spans]
    assert names == ["p", "outer", "second", "p", "outer", "second", "inner"]
    first, second = (span for span in trace.spans if span.name == "p")
    assert all(first.start <= span.start <= span.end <= first.end for span in trace.spans[1:3])
    assert all(second.start <= span.start <= span.end <= second.end for span in trace.spans[4:])
    assert trace.spans[-1].details == {"batch": 1}


def test_closing_forgets_the_programs(executor: RecordedExecutor) -> None:
    x = table(1.0)
    executor.run("target", "p", lambda: double_norm(x), 1)
    executor.close()
    y = table(-1.0)
    assert executor.run("target", "p", lambda: double_norm(y), 1).value.tolist() == [[-2.0] * 4]
