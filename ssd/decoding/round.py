"""What a round leaves for the host, and how a failing draft is told apart from a failing target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ssd.runtime.trace import Span
from ssd.state import Speculation


@dataclass
class Verification:
    """p's logits, the row behind each token committed now, and when the verification ran."""

    logits: Tensor  # [n, T, V] float32
    path: Tensor  # [n, T] int32, −1 beyond the tokens committed
    span: Span


@dataclass
class Round:
    """One round: its verification, the speculation verified, and what the draft did.

    draft: when it prepared a speculation, hidden ("ssd") or not ("sd"). fallback: when it drafted for the outcomes that were missed,
    in "ssd". branches: prepared for each sequence. seen: [n, 4] int32, of the outcome looked up at the beginning of the round (after a
    hit, spec_len, k, the next token's rank among the guesses for k), −1 where there was none.
    """

    verification: Verification
    speculation: Speculation
    draft: Span | None = None
    fallback: Span | None = None
    branches: int = 0
    seen: Tensor | None = None


class DraftFailed(Exception):
    """The draft raised; no request is lost. `round` is what the target committed all the same, if it had run."""

    def __init__(self, round: Round | None = None) -> None:
        super().__init__("the draft failed")
        self.round = round

    @classmethod
    @contextmanager
    def guard(cls, round: Round | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise cls(round) from error
