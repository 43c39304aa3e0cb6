"""Shapes of published models, and models in them with random weights. common/models.py names them for the scripts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssd.models.config import ModelConfig
from ssd.models.transformer import Transformer
from ssd.models.weights import expected_tensors


def model_shape(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, dim: int, tied: bool, qk_norm: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, frequency_factors=None,
        max_position=4096, tie_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip


SHAPES = {
    "Llama-3.1-8B": model_shape(128256, 4096, 14336, 32, 32, 8, 128, tied=False, qk_norm=False),
    "Llama-3.2-1B": model_shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True, qk_norm=False),
    "Qwen3-32B": model_shape(151936, 5120, 25600, 64, 64, 8, 128, tied=False, qk_norm=True),
    "Qwen3-0.6B": model_shape(151936, 1024, 3072, 28, 16, 8, 128, tied=True, qk_norm=True),
}


class LazyTensors(dict[str, Tensor]):
    """A checkpoint's tensors, each made when it is taken, so that a large model is never in memory twice.

    shapes: by name. make: called with a name and its shape.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], make: Callable[[str, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.shapes, self._make = shapes, make

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def pop(self, name: str) -> Tensor:  # type: ignore[override]
        return self._make(name, self.shapes.pop(name))


def random_tensors(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LazyTensors:
    generator = torch.Generator(device).manual_seed(0)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        return torch.randn(shape, device=device, dtype=dtype, generator=generator).mul_(shape[1] ** -0.5)

    return LazyTensors(expected_tensors(config), make)


def random_model(config: ModelConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    on = torch.device(device)
    return Transformer.from_tensors(config, random_tensors(config, dtype, on), dtype, on, config.max_position)
