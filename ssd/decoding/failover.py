"""The loop in use, and what a lost draft means: decoding goes on autoregressively, and no request is lost.

Loops only mark an error as the draft's (`DraftFailed`). Here alone it is decided what follows: the user is warned once, the draft's
thread and graphs are released, and an autoregressive loop over the same state takes the place of the loop in use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ssd.decoding.autoregressive import Autoregressive
from ssd.decoding.prefill import Admitted
from ssd.decoding.round import DraftFailed, Round, SlotReport, Verification
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.runtime.executor import Executor

Loop = Autoregressive | Speculative | SpeculativeSpeculative


class Failover:
    """Calls the loop in use. stand_in: makes the loop that goes on without the draft.

    failure: the error that the draft was lost by, None while there is a draft or none was asked for. Methods are the loops'; none
    raises `DraftFailed`.
    """

    def __init__(self, executor: Executor, stand_in: Callable[[], Autoregressive]) -> None:
        self._executor = executor
        self._stand_in = stand_in
        self.failure: str | None = None
        self.loop: Loop = stand_in()

    def lose_draft(self, error: BaseException | None) -> None:
        """Note that the draft failed, and warn of it."""
        self.failure = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"the draft failed ({self.failure}); decoding goes on without it, token by token", RuntimeWarning, stacklevel=3
        )

    def stage(self, request: Admitted) -> None:
        self._call(lambda loop: loop.stage(request))

    def store(self, slot: int, start: int, stop: int) -> None:
        self._call(lambda loop: loop.store(slot, start, stop))

    def enter(self, slot: int, start: int, stop: int) -> Verification:
        verification: Verification = self._call(lambda loop: loop.enter(slot, start, stop))
        return verification

    def round(self, n: int) -> Round:
        round: Round = self._call(lambda loop: loop.round(n))
        return round

    def learn(self, round: Round, reports: Sequence[SlotReport]) -> None:
        if self.failure is None:
            self._call(lambda loop: loop.learn(round, reports))
        if self.failure is not None:
            round.forget_draft()  # the draft's part of a round that was in flight is never over

    def retire(self, slot: int) -> None:
        self._call(lambda loop: loop.retire(slot))

    def _call(self, call: Callable[[Loop], Any]) -> Any:
        """Call the loop in use. If the draft fails, switch; then return the work that the target began all the same, or call again."""
        try:
            return call(self.loop)
        except DraftFailed as failed:
            self.lose_draft(failed.__cause__)
            self._executor.close()
            self.loop = self._stand_in()
            self._executor.settle()  # its tables are allocated before its programs run
            if failed.begun is None:
                return call(self.loop)
            if isinstance(failed.begun, Round):
                failed.begun.forget_draft()
            return failed.begun
