"""The draft's thread. Ops release the GIL, so on a CPU the draft's forward passes run beside the target's."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]  # None ends the thread


class Worker:
    """One thread with `threads` intra-op threads. It ends with `close`, with its owner, or with the interpreter.

    Not a ThreadPoolExecutor: that refuses work once the main thread has ended, though other threads may still decode.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._closed = False
        self._process = -1  # the process that the thread is in: it starts with the first call

    def _start(self) -> None:
        self._process = os.getpid()
        self._tasks: Tasks = SimpleQueue()
        thread = threading.Thread(target=_work, args=(self._tasks, self._threads), name="ssd-draft", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._tasks, thread)  # also at exit, after all threads that may decode

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run a call on the thread. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the draft's thread cannot take work after its shutdown.")
        if self._process != os.getpid():  # no call yet, or a forked child, which has the worker, but not its thread
            self._start()
        future: Future[Result] = Future()
        self._tasks.put((future, lambda: work(*args)))
        return future

    def close(self) -> None:
        self._closed = True
        if self._process == os.getpid():
            self._end()


def _work(tasks: Tasks, threads: int) -> None:
    torch.get_num_threads()  # or torch would set this thread's number anew at its first op
    torch.set_num_threads(threads)
    with torch.inference_mode():
        while (task := tasks.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del task, future, call  # so that a waiting thread keeps nothing alive


def _end(tasks: Tasks, thread: threading.Thread) -> None:
    tasks.put(None)
    if thread is not threading.current_thread():
        thread.join()
