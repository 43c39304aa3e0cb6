"""The draft's thread. Ops release the GIL, so on a CPU the draft's forward passes really run beside the target's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Worker:
    """One thread with `threads` intra-op threads of its own."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(1, "ssd-draft", initializer=torch.set_num_threads, initargs=(threads,))

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        def run() -> Any:
            with torch.inference_mode():
                return work(*args)

        return self._pool.submit(run)

    def close(self) -> None:
        self._pool.shutdown()
