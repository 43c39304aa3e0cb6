"""The paged K/V cache of one model, and the rows of a forward pass over it.

Both models share page ids: one page table names the pages of a sequence in the target's cache and in the draft's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssd.ops import RowTensors

PAGE_SIZE = 16  # tokens per page, everywhere in the engine


@dataclass
class Rows:
    """The tokens of a forward pass, one per row. Rows of one sequence are adjacent. Tensors: int32, on the model's device."""

    ids: Tensor  # [R]
    positions: Tensor  # [R]
    kv_slots: Tensor  # [R] the KV slot that the row's K/V are written to
    row_seq: Tensor  # [R] the row's sequence: its row of page_table
    prefix_len: Tensor  # [R] number of paged keys that the row sees, with its own key if that is in the pages
    page_table: Tensor  # [S, P]
    suffix_slots: Tensor | None = None  # [R, W] KV slots of the keys after the prefix
    suffix_len: Tensor | None = None  # [R] number of suffix keys that the row sees

    @classmethod
    def of(cls, rows: RowTensors, page_table: Tensor) -> Rows:
        """rows: from `ops.tree_rows` or `ops.branch_rows`."""
        return cls(*rows[:5], page_table, *rows[5:])


class KVShape(Protocol):
    """The part of a model's configuration that determines the shape of its K/V."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class KVCache:
    """One model's K/V. kv: [layers, 2, pages, PAGE_SIZE, kv_heads, head_dim], one allocation. Page 0 is the null page."""

    @staticmethod
    def bytes_a_page(shape: KVShape, dtype: torch.dtype) -> int:
        return 2 * shape.num_layers * PAGE_SIZE * shape.num_kv_heads * shape.head_dim * dtype.itemsize

    def __init__(self, shape: KVShape, num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kv = torch.empty(
            (shape.num_layers, 2, num_pages, PAGE_SIZE, shape.num_kv_heads, shape.head_dim), dtype=dtype, device=device
        )
        self.layers = [(layer[0], layer[1]) for layer in self.kv]
        self.kv[:, :, 0] = 0  # rows of finished slots read the null page: their results are ignored, but must be finite
