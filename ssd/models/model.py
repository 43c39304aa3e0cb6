"""The protocol of a model. The loops (ssd/decoding) use nothing else of it.

`Transformer` implements it; `PacedModel` (ssd/runtime/paced.py) wraps a model.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ssd.kv.cache import KVCache, Rows
from ssd.models.config import ModelConfig


class Model(Protocol):
    """A decoder: rows of tokens in, logits out. vocab_size: columns of its logits."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def vocab_size(self) -> int: ...

    def weight_bytes(self) -> int:
        """The bytes of weights that a decode step reads: every packed weight, once."""

    def forward(self, rows: Rows, cache: KVCache) -> Tensor:
        """Run the rows and write their K/V to the cache. Returns their normalised hidden states, [R, d]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [R, d]. Returns [R, vocab_size] float32."""

    def next_logits(self, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        """A forward pass with its logits: after each row, or after the last row of each run of `every`.

        Returns [R / every, vocab_size] float32.
        """
