"""A model whose forward passes last at least a given time.

With paced models, one machine shows how the engine behaves when each role has hardware of its own: a pass waits by sleeping,
which takes no memory bandwidth. Figures from paced models are always labelled paced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ssd.kv.cache import KVCache, Rows
from ssd.models.model import Model


def paced(model: Model, least_ms: float | None) -> Model:
    """The model, paced to this least time of a forward pass in milliseconds; the model itself if least_ms is None."""
    return model if least_ms is None else PacedModel(model, least_ms)


class PacedModel:
    """Runs another model. Each call of `forward` or `next_logits` lasts at least `least_ms` milliseconds."""

    def __init__(self, model: Model, least_ms: float) -> None:
        self._model = model
        self._least_s = least_ms / 1e3
        self.config = model.config
        self.dtype = model.dtype
        self.device = model.device
        self.vocab_size = model.vocab_size

    def weight_bytes(self) -> int:
        return self._model.weight_bytes()

    def forward(self, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        with self._least_time():
            return self._model.forward(rows, cache, every)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        return self._model.logits(hidden, out)

    def next_logits(self, rows: Rows, cache: KVCache, every: int = 1, out: Tensor | None = None) -> Tensor:
        with self._least_time():
            return self._model.next_logits(rows, cache, every, out)

    @contextmanager
    def _least_time(self) -> Iterator[None]:
        deadline = time.perf_counter() + self._least_s
        yield
        if (left := deadline - time.perf_counter()) > 0:
            time.sleep(left)
