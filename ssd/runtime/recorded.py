"""Rounds on the CPU without Python in them: a program is recorded when it is first run, and each run is one call of C++.

A program calls the project's ops and takes views. Recording does no op's work: the op checks its arguments and allocates its
output, and its work becomes a step of the program (csrc/cpu/program.h). So every run uses the same memory. For the same name, n
and key a program must be the same ops on the same tables, as on a GPU. The interpreter's lock is free while a program runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssd.errors import SsdError
from ssd.native import Program
from ssd.runtime.executor import EagerExecutor
from ssd.runtime.trace import Marked, Trace

Key = tuple[str, str, int, object]  # lane, name, slots, and the caller's key


class OnlyOurOps(TorchDispatchMode):
    """Lets a program call the project's ops and take views. Raises SsdError for any other op of torch, whose work would be done
    once, while the program is recorded. allocated: bytes of the ops' outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ssd":
            result = func(*args, **(kwargs or {}))
            self.allocated += sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result
        returns = func._schema.returns
        if not returns or not all(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            raise SsdError(f"a recorded program calls {func}, and it may only call the project's ops and take views.")
        return func(*args, **(kwargs or {}))


@dataclass
class _Replay:
    """A recorded program. Calling it runs its steps and returns the tables that the program returned."""

    trace: Trace
    steps: Program = field(default_factory=Program)
    flags: list[Tensor] = field(default_factory=list)  # of its conditions: the steps read their memory
    marked: list[Marked] = field(default_factory=list)  # its spans
    value: Any = None

    def __call__(self) -> Any:
        self.steps.run()
        if self.trace.recording:
            self.trace.keep_marked(self.marked, self.steps.times)
        return self.value


class RecordedExecutor(EagerExecutor):
    """Runs recorded programs, on the threads of an `EagerExecutor`."""

    kind = "recorded"

    def __init__(self, trace: Trace, draft_threads: int = 1) -> None:
        super().__init__(trace, draft_threads)
        self._programs: dict[Key, _Replay] = {}
        self._recording: _Replay | None = None

    def _prepare(self, lane: str, name: str, program: Callable[[], Any], n: int, key: object) -> Callable[[], Any]:
        identity = (lane, name, n, key)
        if identity not in self._programs:
            self._programs[identity] = self._record(program)
        return self._programs[identity]

    def _record(self, program: Callable[[], Any]) -> _Replay:
        self.settle()  # a program that runs beside this has spans of its own
        began, only_ours = time.perf_counter(), OnlyOurOps()
        self._recording = replay = _Replay(self.trace)
        replay.steps.begin()
        try:
            with self.trace.marking(replay.steps.mark) as replay.marked, only_ours:
                replay.value = program()
        finally:
            replay.steps.end()
            self._recording = None
        self.recorded.programs += 1
        self.recorded.seconds += time.perf_counter() - began
        self.recorded.bytes += only_ours.allocated
        return replay

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        if self._recording is None:
            return super().when(flags, program)
        assert flags.is_contiguous()
        steps = self._recording.steps
        self._recording.flags.append(flags)
        steps.begin_when(flags.data_ptr(), flags.nbytes)
        try:
            program()
        finally:
            steps.end_when()

    def close(self) -> None:
        super().close()
        self._programs.clear()
