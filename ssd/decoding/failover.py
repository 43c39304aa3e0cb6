"""The loop in use. When the draft fails, decoding goes on autoregressively, and no request is lost.

A loop only marks an error as the draft's (`DraftFailed`). This file alone handles it: it warns the user once, releases the
draft's thread and graphs, and replaces the loop by an autoregressive one over the same state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ssd.decoding.autoregressive import Autoregressive
from ssd.decoding.prefill import Admitted
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.runtime.executor import Executor

Loop = Autoregressive | Speculative | SpeculativeSpeculative


class Failover:
    """Calls the loop in use. It has the loops' methods, and none of them raises `DraftFailed`.

    stand_in: makes the loop that decodes without the draft. failure: the error by which the draft was lost; None while there is
    a draft, and where the user asked for none. warnings: for the core to issue.
    """

    def __init__(self, executor: Executor, stand_in: Callable[[], Autoregressive]) -> None:
        self._executor = executor
        self._stand_in = stand_in
        self.failure: str | None = None
        self.warnings: deque[str] = deque()
        self.loop: Loop = stand_in()

    def lose_draft(self, error: BaseException | None) -> None:
        """Note that the draft failed, and leave a warning."""
        self.failure = f"{type(error).__name__}: {error}"
        self.warnings.append(f"the draft failed ({self.failure}); decoding goes on without it, token by token")

    def stage(self, request: Admitted) -> None:
        self._call(lambda loop: loop.stage(request))

    def store(self, slot: int, start: int, stop: int) -> None:
        self._call(lambda loop: loop.store(slot, start, stop))

    def catch_up(self, slot: int, start: int, stop: int) -> None:
        self._call(lambda loop: loop.catch_up(slot, start, stop))

    def enter(self, slot: int, start: int, stop: int, resumes: bool) -> Verification:
        verification: Verification = self._call(lambda loop: loop.enter(slot, start, stop, resumes))
        return verification

    def grow(self, slot: int, first: int, pages: Tensor) -> None:
        self._call(lambda loop: loop.grow(slot, first, pages))

    def draft_reach(self, tokens: int) -> int:
        return self.loop.draft_reach(tokens)

    def round(self, n: int) -> Round:
        round: Round = self._call(lambda loop: loop.round(n))
        return round

    def learn(self, round: Round, reports: Mapping[int, SlotReport]) -> None:
        if self.failure is None:
            self._call(lambda loop: loop.learn(round, reports))
        if self.failure is not None:
            round.forget_draft()  # the draft's part of a round in flight never ends

    def retire(self, slot: int) -> None:
        self._call(lambda loop: loop.retire(slot))

    def _call(self, call: Callable[[Loop], Any]) -> Any:
        """Call the loop in use.

        If the draft fails, switch loops; then return the work that the target had started, or call again.
        """
        try:
            return call(self.loop)
        except DraftFailed as failed:
            self.lose_draft(failed.__cause__)
            self._executor.close()
            self.loop = self._stand_in()
            self._executor.settle()  # the new loop's tables are allocated before its programs run
            if failed.target_work is None:
                return call(self.loop)
            if isinstance(failed.target_work, Round):
                failed.target_work.forget_draft()
            return failed.target_work
