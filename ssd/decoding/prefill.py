"""Storing a prompt: in chunks between rounds, from staging tables, until its slot is switched on.

Only what the prefix cache lacks is stored. A request that was preempted stores the tokens that it had, as a prompt does.

The staging tables are a `SequenceState` of one row. While a prompt is stored, its slot stays done and names only the null page,
so rounds in flight do not see it. The last chunk commits the first token and copies the staged row into the slot.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ssd.decoding.state import SequenceState
from ssd.kv.cache import Rows
from ssd.options import SamplingParams
from ssd.runtime.executor import Executor

PREFILL_CHUNK = 256  # prompt tokens per forward pass: its rows share one read of the weights


class Admitted(Protocol):
    """A request that has its pages; see `ssd.requests.Request`."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def pages(self) -> np.ndarray | None:
        """[pages] int32, page ids in both models' caches."""


def stage(staging: SequenceState, executor: Executor, request: Admitted) -> None:
    """Write a request into the staging tables, on the target's lane. Called `alone`."""
    tokens, pages = request.tokens, request.pages
    assert pages is not None
    with executor.on("target"):
        executor.write("target", staging.tokens[0, : len(tokens)], torch.tensor(tokens, dtype=torch.int32))
        staging.page_table.zero_()
        executor.write("target", staging.page_table[0, : len(pages)], torch.from_numpy(pages))
        staging.fill(0, len(tokens), tokens[-1], request.params, request.seed, request.max_length)


def chunk_rows(staging: SequenceState, start: int, stop: int) -> Rows:
    """The rows of the staged tokens start..stop−1, at most PREFILL_CHUNK.

    A row of our ops depends neither on its neighbours nor on their number. So the K/V of a token depends only on the tokens
    before it, wherever a chunk is cut, and whether a chunk or a round stored it: pages can be shared by content.
    """
    root = torch.full((1,), start + 1, dtype=torch.int32, device=staging.length.device)
    return staging.rows(staging.tokens[:, start + 2 : max(stop, start + 2)], root, -1, stop - start)
