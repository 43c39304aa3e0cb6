"""Models by their shapes alone: what they take in memory, and what a pass reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

import torch

from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE, KVCache
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.quantise import SCALE
from ssd.models.shapes import SHAPES
from ssd.models.weights import DRAFT_VOCAB, EMBEDDINGS, LM_HEAD, expected_tensors, read_config, read_shapes
from ssd.options import WeightsName


@dataclass(frozen=True)
class PlannedModel:
    """A model without its weights.

    vocab_size: columns of its logits. layers_bytes, head_bytes: weights that a pass reads. table_bytes: embeddings beside them;
    0 for a draft that uses its target's.
    """

    name: str
    config: ModelConfig
    dtype: torch.dtype
    vocab_size: int
    layers_bytes: int
    head_bytes: int
    table_bytes: int

    @classmethod
    def named(cls, name: str, dtype: torch.dtype, weights: WeightsName) -> PlannedModel:
        """From the name of a shape (ssd/models/shapes.py), or a model's name, path or hub id. Raises SsdError."""
        if name in SHAPES:
            config, shapes = SHAPES[name], expected_tensors(SHAPES[name])
        else:
            path = registry.resolve(name)
            config, shapes = read_config(path), read_shapes(path)
        int8 = weights == "int8" or (weights == "auto" and any(tensor.endswith(SCALE) for tensor in shapes))
        columns = shapes.get(DRAFT_VOCAB, (config.vocab_size,))[0]

        def size(shape: tuple[int, ...]) -> int:
            return prod(shape) + 4 * shape[0] if int8 else prod(shape) * dtype.itemsize

        linears = [shape for tensor, shape in shapes.items() if len(shape) == 2 and tensor not in (EMBEDDINGS, LM_HEAD)]
        head = size((columns, config.hidden_size))
        table = 0 if config.borrows_embeddings else config.vocab_size * config.hidden_size * dtype.itemsize
        return cls(name, config, dtype, columns, sum(map(size, linears)), head, table)

    def first_layers(self, count: int) -> PlannedModel:
        """The draft that is made of its first layers, with its own head."""
        return replace(
            self,
            name=f"self:{count}",
            config=replace(self.config, num_layers=count),
            layers_bytes=self.layers_bytes * count // self.config.num_layers,
            table_bytes=0,
        )

    @property
    def pass_bytes(self) -> int:
        return self.layers_bytes + self.head_bytes

    @property
    def kv_bytes_a_token(self) -> float:
        return KVCache.bytes_a_page(self.config, self.dtype) / PAGE_SIZE

    @property
    def stored_bytes(self) -> int:
        return self.pass_bytes + self.table_bytes


def planned_draft(name: str, target: PlannedModel, weights: WeightsName) -> PlannedModel:
    """name: as the option "draft". Raises SsdError."""
    if match := re.fullmatch(r"self:(\d+)", name):
        layers = int(match[1])
        if not 1 <= layers <= target.config.num_layers:
            raise SsdError(f"draft is {name!r}; for {target.name!r} it can be 'self:1' to 'self:{target.config.num_layers}'.")
        return target.first_layers(layers)
    return PlannedModel.named(name, target.dtype, weights)
