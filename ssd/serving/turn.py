"""Whose turn it is to step: one thread at a time, and the others sleep until it is over.

An interrupt must not leave the turn taken, or cut a step in half. So it is delayed from taking the turn until giving it back.
Outside of that time nothing here holds a lock.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Turn:
    """Held by one thread at most. `take` and `give_back` belong inside `interrupts_deferred`."""

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self._process = os.getpid()  # the process of the last thread that took it
        self._sleepers: deque[threading.Lock] = deque()  # one for each sleeping thread, released to wake it

    def take(self) -> bool:
        """Take the turn. Returns False, at once, if it is taken."""
        if not self._taken.acquire(blocking=False):
            return False
        self._process = os.getpid()
        return True

    @property
    def lost(self) -> bool:
        """Whether it was taken when this process was forked: its thread is not here, so nobody gives it back."""
        return self._process != os.getpid() and self._taken.locked()

    def give_back(self) -> None:
        """Give the turn back, and wake every thread that sleeps."""
        self._taken.release()
        with suppress(IndexError):
            while True:
                self._sleepers.popleft().release()

    def sleep(self, ready: Callable[[], bool]) -> None:
        """Sleep until the turn is given back, 50 ms at most. Returns at once if it is free or if `ready()`."""
        woken = threading.Lock()
        woken.acquire()
        self._sleepers.append(woken)
        if self._taken.locked() and not ready():
            woken.acquire(timeout=0.05)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Delay a Ctrl-C inside the block until its end."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])
