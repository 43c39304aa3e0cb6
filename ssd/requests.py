"""What a prompt became, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ssd.decoding.stats import Stats


@dataclass(frozen=True)
class Completion:
    """What a prompt became.

    token_ids: generated only, the end-of-sequence token included. finish_reason: "eos", "length" or "stop". logprobs: for each token
    the log-probabilities asked for, by id, the token's own among them; None if none were. degraded: the draft failed, and this was
    finished without it.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[dict[int, float]] | None
    degraded: bool
    stats: Stats


class Stream:
    """Iterates over pieces of text as tokens are committed; `completion` is there at the end. `close` gives up the rest."""

    def __init__(self, pieces: Generator[str | Completion]) -> None:
        self._pieces = pieces
        self.completion: Completion | None = None

    def close(self) -> None:
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, Completion):
                self.completion = piece
            else:
                yield piece
