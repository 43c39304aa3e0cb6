"""How a forward pass of either model is run: at once, or paced.

Paced, every forward lasts at least a given time, waiting off the memory bus: one machine then shows what the engine does when
each role has hardware of its own. Figures from it are always labelled paced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ssd.runtime.trace import Trace

Result = TypeVar("Result")


class Executor:
    """Runs forward passes eagerly. `trace` is where the phases of a round are measured."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def forward(self, role: str, program: Callable[[], Result]) -> Result:
        """Run one forward pass of `role`, "target" or "draft"."""
        return program()

    def when(self, flags: Tensor, program: Callable[[], Result]) -> Result | None:
        """Run the program if any flag is set."""
        return program() if bool(flags.any()) else None


class PacedExecutor(Executor):
    """Runs forward passes eagerly, each lasting at least `pace[role]` milliseconds."""

    def __init__(self, trace: Trace, pace: tuple[float, float]) -> None:
        super().__init__(trace)
        self._least_s = {"target": pace[0] / 1e3, "draft": pace[1] / 1e3}

    def forward(self, role: str, program: Callable[[], Result]) -> Result:
        deadline = time.perf_counter() + self._least_s[role]
        result = program()
        if (left := deadline - time.perf_counter()) > 0:
            time.sleep(left)
        return result
