"""The paged K/V cache, and the rows of tokens that a forward pass runs over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssd.models.config import ModelConfig

PAGE_SIZE = 16  # tokens


@dataclass
class Rows:
    """Tokens of a forward pass; rows of one sequence are adjacent. All tensors are int32, on the model's device."""

    ids: Tensor  # [R]
    positions: Tensor  # [R]
    kv_slots: Tensor  # [R] where each row's K/V is written
    row_seq: Tensor  # [R] row of page_table
    prefix_len: Tensor  # [R] paged keys seen, the row's own among them if it is stored there
    page_table: Tensor  # [S, P]
    suffix_slots: Tensor | None = None  # [R, W] further keys seen
    suffix_len: Tensor | None = None  # [R]


class KVCache:
    """One model's K/V: [layers, 2, pages, page_size, kv_heads, head_dim] in one allocation. Page 0 is the null page."""

    @staticmethod
    def bytes_a_page(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
        return 2 * config.num_layers * page_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    def __init__(self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_layers, 2, num_pages, page_size, config.num_kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self.page_size = page_size
        self.layers = [(layer[0], layer[1]) for layer in self.kv]
        self.kv[:, :, 0] = 0  # rows of finished slots read the null page: what they compute is ignored, but it is finite
