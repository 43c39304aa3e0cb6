"""Models in the shapes of published ones, with random weights or of a known function. common/models.py names them for the
scripts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssd.models.config import ModelConfig
from ssd.models.shapes import SHAPES, model_shape
from ssd.models.transformer import Transformer
from ssd.models.weights import EMBEDDINGS, LM_HEAD, expected_tensors
from ssd.options import EngineOptions, WeightsName

__all__ = ["SHAPES", "LazyTensors", "bigram_tensors", "model_shape", "random_model", "random_tensors"]


class LazyTensors(dict[str, Tensor]):
    """A checkpoint's tensors, each made when it is taken, so that a large model is never in memory twice.

    shapes: by name. make: called with a name and its shape.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], make: Callable[[str, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.shapes, self.make = shapes, make

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def pop(self, name: str) -> Tensor:  # type: ignore[override]
        return self.make(name, self.shapes.pop(name))


def random_tensors(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LazyTensors:
    generator = torch.Generator(device).manual_seed(0)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        return torch.randn(shape, device=device, dtype=dtype, generator=generator).mul_(shape[1] ** -0.5)

    return LazyTensors(expected_tensors(config), make)


def bigram_tensors(config: ModelConfig, dtype: torch.dtype, device: torch.device, wrong: float = 0.0) -> LazyTensors:
    """A model that follows each token with one other token, the same one in every shape with this vocabulary.

    For a share `wrong` of the tokens it puts another token first, and the right one second. The layers are read and computed
    as always, but add nothing: their output projections are zero. The head must not be tied.
    """
    on_host = torch.Generator().manual_seed(0)
    following = torch.randperm(config.vocab_size, generator=on_host)
    is_wrong = torch.rand(config.vocab_size, generator=on_host) < wrong
    plain = random_tensors(config, dtype, device).make

    def embeddings() -> Tensor:
        shape = (config.vocab_size, config.hidden_size)
        return torch.randn(shape, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(1))

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if name == EMBEDDINGS:
            return embeddings()
        if name == LM_HEAD:
            embedded = embeddings() * (20 / config.hidden_size)  # the logit of the first token is about 20, of most others 0
            right, other = following.to(device), following.roll(1).to(device)
            head = torch.empty_like(embedded)
            head[right] = torch.where(is_wrong.to(device)[:, None], 0.9 * embedded, embedded)
            head[other[is_wrong]] += embedded[is_wrong]
            return head
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return torch.zeros(shape, device=device, dtype=dtype)
        return plain(name, shape)

    return LazyTensors(expected_tensors(config), make)


def random_model(
    config: ModelConfig, device: str, dtype: torch.dtype = torch.bfloat16, weights: WeightsName = EngineOptions.weights
) -> Transformer:
    on = torch.device(device)
    return Transformer.from_tensors(config, random_tensors(config, dtype, on), dtype, on, config.max_position, weights=weights)
