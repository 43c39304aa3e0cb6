"""Whole forward passes of models with random weights, as one graph each: what the kernels come to together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_cases import BFLOAT16, PAGE_SIZE, Case, count, i32
from torch import Tensor

from ssd.models.config import ModelConfig
from ssd.models.transformer import KVCache, Rows, Transformer
from ssd.models.weights import expected_tensors


def config(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, dim: int, tied: bool, qk_norm: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, frequency_factors=None,
        max_position=4096, tie_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip


MODELS = {
    "Llama-3.1-8B": config(128256, 4096, 14336, 32, 32, 8, 128, tied=False, qk_norm=False),
    "Qwen3-0.6B": config(151936, 1024, 3072, 28, 16, 8, 128, tied=True, qk_norm=True),
}


class RandomTensors(dict[str, Tensor]):
    """A checkpoint's tensors, each made when it is taken: a large model is never in memory twice."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shapes, self.dtype, self.device = expected_tensors(config), dtype, device

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def pop(self, name: str) -> Tensor:  # type: ignore[override]
        shape = self.shapes.pop(name)
        if len(shape) == 1:
            return torch.ones(shape, device=self.device, dtype=self.dtype)
        return torch.randn(shape, device=self.device, dtype=self.dtype).mul_(shape[1] ** -0.5)


def random_model(config: ModelConfig, dtype: torch.dtype = BFLOAT16, device: str = "cuda") -> Transformer:
    on = torch.device(device)
    return Transformer.from_tensors(config, RandomTensors(config, dtype, on), dtype, on, config.max_position)


def decode_rows(keys: int, rows: int, suffix: int) -> tuple[Rows, int]:
    """`rows` rows of one sequence that see `keys` keys each, the last `suffix` of them in places of their own; (rows, pages)."""
    prefix = keys - suffix
    pages = -(-keys // PAGE_SIZE)
    own = pages * PAGE_SIZE + torch.arange(rows * max(suffix, 1)).view(rows, -1)  # [rows, suffix]
    slots = own[:, -1] if suffix else torch.full((rows,), keys - 1)
    return Rows(
        ids=torch.randint(1000, (rows,)).int().cuda(),
        positions=i32([keys - 1] * rows),
        kv_slots=slots.int().cuda(),
        row_seq=i32([0] * rows),
        prefix_len=i32([prefix] * rows),
        page_table=torch.randperm(pages).int()[None].cuda(),
        suffix_slots=own.int().cuda() if suffix else None,
        suffix_len=i32([suffix] * rows) if suffix else None,
    ), pages + -(-own.numel() // PAGE_SIZE)


def passes() -> Iterator[Case]:
    for name, shape in MODELS.items():
        model = random_model(shape)
        for rows_count, suffix, keys in ((1, 0, 512), (24, 3, 512)):
            rows, pages = decode_rows(keys, rows_count, suffix)
            cache = KVCache(shape, pages, PAGE_SIZE, BFLOAT16, torch.device("cuda"))
            cache.kv.normal_()
            of = {"model": name, "rows": rows_count, "keys": keys, "suffix": suffix}
            yield Case(
                "pass",
                f"{name}, {count(rows_count, 'row')}, {keys} keys",
                of,
                [lambda m=model, r=rows, c=cache: m.logits(m.forward(r, c))],
                model.weight_bytes(),
            )
        del model
