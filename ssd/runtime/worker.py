"""The draft's thread. Ops release the GIL, so on a CPU the draft's forward passes run in parallel with the target's."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Worker:
    """One thread. threads: number of its intra-op threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(1, "ssd-draft", initializer=torch.set_num_threads, initargs=(self._threads,))

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        def run() -> Result:
            with torch.inference_mode():
                return work(*args)

        if self._process != os.getpid():  # a forked child inherits the pool object, but not its thread
            self._start()
        return self._pool.submit(run)

    def close(self) -> None:
        self._pool.shutdown()
