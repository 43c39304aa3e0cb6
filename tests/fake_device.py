"""A simulated device: streams, events and graphs over CPU tensors, run in any order that streams and events allow.

Enqueued work runs only when the host waits for something, one op at a time, each from a stream chosen at random. A missing
event, or a table that one lane reads while the other writes it, gives different tokens or counts for some seed.

A program is recorded by running it once: every op is noted, and every table that it wrote is restored. A launch then replays
the noted ops on the same tensors. As in a CUDA graph, every decision that the host made while recording is final, and reading a
value on the host while recording is refused. A program's warm-up run, eager on a GPU, is recorded here too.

It cannot find: memory that is freed while a graph still refers to it (a recording keeps its tensors alive), tables that are
filled outside any stream, a tensor on the wrong device, an op on the wrong current device, and any fault inside an op.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], "list[Step] | None"]  # runs one op, or returns the steps to run instead


class HostRead(RuntimeError):
    """A program read a value on the host while it was recorded."""


class _NoHostReads(TorchFunctionMode):
    READS = (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READS:
            raise HostRead(f"a program calls {func.__name__} while it is recorded")
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Recorder(TorchDispatchMode):
    """Notes every op; `restore` undoes their writes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._allocated: set[int] = set()  # storages that this program allocated
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise HostRead("a program reads a value while it is recorded")
        for is_written, value in self._arguments(func, args, kwargs):
            if is_written:
                self._save(value)
        result = func(*args, **kwargs)
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        new_tensors = [tensor for tensor in _tensors(result) if tensor.untyped_storage().data_ptr() not in inputs]
        self._allocated.update(tensor.untyped_storage().data_ptr() for tensor in new_tensors)
        self._alive.append((args, kwargs, result))

        def step() -> None:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if any(old is tensor for tensor in new_tensors):
                    old.copy_(new)

        self.steps.append(step)
        return result

    @staticmethod
    def _arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[bool, Tensor]]:
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value):
                yield argument.alias_info is not None and argument.alias_info.is_write, tensor

    def _save(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._allocated and storage.data_ptr() not in self._saved:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
            self._saved[storage.data_ptr()] = (whole, whole.clone())

    def restore(self) -> None:
        for whole, saved in self._saved.values():
            whole.copy_(saved)


@dataclass
class FakeGraph:
    steps: list[Step]


class FakeEvent:
    def __init__(self, device: FakeDevice, lane: str) -> None:
        self._device = device
        self._lane = lane
        self.passed_at: float | None = None

    def wait(self) -> None:
        if self._lane in self._device.lost:
            raise RuntimeError(f"the device of the {self._lane} is lost")
        self._device.run_until(lambda: self.passed_at is not None)

    def seconds(self) -> float:
        assert self.passed_at is not None, "the host asks for the time of an event it has not waited for"
        return self.passed_at


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    lane: str
    queue: deque[Any] = field(default_factory=deque)  # steps, and events to wait for
    _open: list[Any] | None = None  # the work that is being enqueued

    @contextmanager
    def work(self) -> Iterator[None]:
        if self._open is not None:  # nested: part of the outer block
            yield
            return
        try:
            with self.device.recording() as self._open:
                yield
            self.queue.extend(self._open)
        finally:
            self._open = None

    def record(self) -> FakeEvent:
        event = FakeEvent(self.device, self.lane)

        def pass_event() -> None:
            event.passed_at = time.perf_counter()

        self._enqueue([pass_event])
        return event

    def wait(self, event: FakeEvent) -> None:
        self._enqueue([event])

    def launch(self, graph: FakeGraph) -> None:
        self._enqueue(graph.steps)

    def _enqueue(self, steps: list[Any]) -> None:
        (self.queue if self._open is None else self._open).extend(steps)


class FakeDevice:
    """seed: seed of the order. patience: the chance that the device goes on after the event that the host waited for."""

    CHANGES = 0.02  # the chance that the favoured stream changes

    def __init__(self, seed: int, patience: float = 0.9) -> None:
        self._dice = random.Random(seed)
        self._patience = patience
        self.streams: dict[str, FakeStream] = {}
        self._favoured: FakeStream | None = None  # this stream runs alone for a while
        self._recorders: list[_Recorder] = []
        self.captures = 0
        self.lost: set[str] = set()  # lanes whose device raises when the host waits for it

    def stream(self, lane: str) -> FakeStream:
        return self.streams.setdefault(lane, FakeStream(self, lane))

    @contextmanager
    def recording(self) -> Iterator[list[Step]]:
        """Collects the steps that the block enqueues, without running them."""
        recorder = _Recorder()
        self._recorders.append(recorder)
        try:
            with recorder:
                yield recorder.steps
        finally:
            self._recorders.pop()
            recorder.restore()

    def capture(self, stream: FakeStream, program: Callable[[], Any]) -> tuple[FakeGraph, Any]:
        self.captures += 1
        with self.recording() as steps, _NoHostReads():
            value = program()
        return FakeGraph(steps), value

    def when(self, flags: Tensor, program: Callable[[], Any]) -> None:
        recorder = self._recorders[-1]
        outside, recorder.steps = recorder.steps, []
        program()
        inside, recorder.steps = recorder.steps, outside

        def branch() -> list[Step] | None:
            return inside if bool(flags.any()) else None

        recorder.steps.append(branch)

    def download(self, table: Tensor) -> Tensor:
        return table.clone()

    def upload(self, table: Tensor, values: Tensor) -> None:
        table.copy_(values.clone())

    def synchronize(self, lanes: Iterable[str]) -> None:
        for lane in list(lanes):
            if lane in self.lost:
                raise RuntimeError(f"the device of the {lane} is lost")
            self.streams[lane].record().wait()

    def free_bytes(self) -> int:
        return 1_000_000 - 1_000 * self.captures

    def run_until(self, reached: Callable[[], bool]) -> None:
        while not reached() or self._dice.random() < self._patience:
            ready = [stream for stream in self.streams.values() if self._can_go_on(stream)]
            if not ready:
                assert reached(), "the host waits for an event that no stream will reach"
                return
            if self._dice.random() < self.CHANGES:
                self._favoured = self._dice.choice([*self.streams.values(), None])
            stream = self._favoured if self._favoured in ready else self._dice.choice(ready)
            for _ in range(self._dice.choice((1, 1, 3, 30))):
                if not self._can_go_on(stream):
                    break
                self._advance(stream)

    @staticmethod
    def _can_go_on(stream: FakeStream) -> bool:
        return bool(stream.queue) and not (isinstance(stream.queue[0], FakeEvent) and stream.queue[0].passed_at is None)

    @staticmethod
    def _advance(stream: FakeStream) -> None:
        first = stream.queue.popleft()
        if not isinstance(first, FakeEvent):
            with torch.inference_mode():
                steps = first()
            stream.queue.extendleft(reversed(steps or []))
