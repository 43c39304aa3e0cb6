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

    def forward(self, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        """Run the rows and write their K/V to the cache.

        Returns the normalised hidden states of all rows, or of the last row of each run of `every`: [R / every, d].
        """

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden: [R, d]. Returns [R, vocab_size] float32: `out`, or a new tensor."""

    def next_logits(self, rows: Rows, cache: KVCache, every: int = 1, out: Tensor | None = None) -> Tensor:
        """A forward pass with its logits, see `forward` and `logits`. Returns [R / every, vocab_size] float32."""
