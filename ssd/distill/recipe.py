"""The settings of a distillation run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ssd.errors import SsdError
from ssd.options import within

CONTEXT = 1024  # the longest chat, in tokens


@dataclass(frozen=True)
class Recipe:
    """The settings of a distillation run.

    layers: number of the draft's layers, each of the target's shape. from_layers: the target's layers that they start from
    (None: its outermost). vocab: number of ids the draft can propose. weights: "int8" or "bfloat16", the format of the stored
    draft and of its computation on a CPU. tokens: total tokens of the answers that the target writes. answer_tokens: longest
    answer, in tokens. epochs: passes over the data. learning_rate: peak learning rate. batch_tokens: tokens per training step.
    time_budget: approximate minutes for the whole run (None: no limit); up to two fifths of them are spent on the data.
    threads: number of CPU threads (None: all cores). seed: random seed of the data and of the training order.

    Raises SsdError for a value outside its range.
    """

    layers: int = 4
    from_layers: Sequence[int] | None = None
    vocab: int = 8192
    weights: str = "int8"
    tokens: int = 574_000
    answer_tokens: int = 192
    epochs: float = 6.0
    learning_rate: float = 3e-3
    batch_tokens: int = 2048
    time_budget: float | None = None
    device: str = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        within("layers", self.layers, 1, 1024, whole=True)
        within("vocab", self.vocab, 1, 2**24, whole=True)
        within("tokens", self.tokens, 1, 10**12, whole=True)
        within("answer_tokens", self.answer_tokens, 2, CONTEXT // 2, whole=True)
        within("epochs", self.epochs, 0, 1e6)
        within("learning_rate", self.learning_rate, 0, 1)
        within("batch_tokens", self.batch_tokens, 1, 2**24, whole=True)
        if self.time_budget is not None:
            within("time_budget", self.time_budget, 0.01, 1e6)
        if self.weights not in ("int8", "bfloat16"):
            raise SsdError(f"weights is {self.weights!r}; it can be 'int8' or 'bfloat16'.")
        if self.from_layers is not None and len(self.from_layers) != self.layers:
            raise SsdError(f"from_layers names {len(self.from_layers)} layers, and layers is {self.layers}; name as many.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise SsdError(f"device is {self.device!r}; it can be 'auto', 'cpu' or 'cuda'.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SsdError("device is 'cuda', and torch finds no GPU; use 'cpu'.")
