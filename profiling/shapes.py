"""Models that no file has: shapes of published ones, with random weights, or with the function of a small model at hand (inflate.py).

    with shapes.engines():
        Engine("random:Llama-3.1-8B", "random:Llama-3.2-1B", "ssd", device="cuda")
        Engine("inflated:Llama-3.1-8B", "inflated-draft:Llama-3.2-1B", "ssd", device="cuda")

Random weights show times: their draft is right about nothing. An inflated pair, smollm2-135m and the draft that comes with it, accepts
and hits as the small pair does, in the time of the large shapes. Neither has a tokenizer: prompts are ids of smollm2-135m.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from inflate import LazyTensors, inflate
from torch import Tensor

import ssd.engine
import ssd.models.pair
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.quantise import SCALE, dequantise, quantise
from ssd.models.transformer import Transformer
from ssd.models.weights import EMBEDDINGS, LM_HEAD, Checkpoint, expected_tensors, load_checkpoint

SMALL = "smollm2-135m"  # whose function an inflated model has


def _shape(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, dim: int, tied: bool, qk_norm: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, frequency_factors=None,
        max_position=4096, tie_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip


SHAPES = {
    "Llama-3.1-8B": _shape(128256, 4096, 14336, 32, 32, 8, 128, tied=False, qk_norm=False),
    "Llama-3.2-1B": _shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True, qk_norm=False),
    "Qwen3-32B": _shape(151936, 5120, 25600, 64, 64, 8, 128, tied=False, qk_norm=True),
    "Qwen3-0.6B": _shape(151936, 1024, 3072, 28, 16, 8, 128, tied=True, qk_norm=True),
}


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


def inflated(name: str, device: torch.device, draft: bool) -> tuple[ModelConfig, LazyTensors]:
    """smollm2-135m in this shape, or its draft."""
    small = load_checkpoint(registry.resolve(SMALL), torch.float32)
    if not draft:
        return inflate(small.config, small.tensors, SHAPES[name], device=device)
    made = load_checkpoint(Path(registry.default_draft(SMALL) or ""), torch.float32)
    tensors: dict[str, Tensor] = {}
    for each, weight in made.tensors.items():
        if not each.endswith(SCALE):
            scale = made.tensors.get(each + SCALE)
            tensors[each] = weight if scale is None else dequantise(weight, scale)
    assert made.draft_vocab is not None
    ids, table = made.draft_vocab.long(), small.tensors[EMBEDDINGS]
    said = torch.zeros(len(table), dtype=torch.bool)
    said[ids] = True
    head = torch.zeros_like(table)
    head[ids] = tensors[LM_HEAD] if LM_HEAD in tensors else dequantise(*quantise(table[ids]))
    # A head of its own: the shape's is tied, but a pass reads as much.
    config, shape = (replace(each, tie_embeddings=False) for each in (made.config, SHAPES[name]))
    config = replace(config, borrows_embeddings=False)
    return inflate(config, tensors | {EMBEDDINGS: table, LM_HEAD: head}, shape, said=said, device=device)


@contextmanager
def engines(device: str) -> Iterator[None]:
    """Within it an Engine takes the names above, and engines of one target share its weights. device: where weights are made."""
    load, resolve, load_target = load_checkpoint, registry.resolve, ssd.models.pair.load_target
    on = torch.device("cpu" if device == "auto" else device)

    def checkpoint(path: Any, dtype: torch.dtype, *progress: Any) -> Checkpoint:
        kind, _, name = str(path).partition(":")
        if name not in SHAPES:
            return load(path, dtype, *progress)
        if kind == "random":
            config, tensors = SHAPES[name], random_tensors(SHAPES[name], dtype, on)
        else:
            config, tensors = inflated(name, on, draft=kind == "inflated-draft")
        return Checkpoint(config, tensors, None, None, str(path), Path(name))

    @lru_cache(maxsize=1)
    def target_once(name: str, dtype: torch.dtype, where: torch.device) -> Any:
        return load_target(name, dtype, where, lambda context: context + 128, lambda fraction: None)

    with (
        mock.patch.object(ssd.models.pair, "load_checkpoint", checkpoint),
        mock.patch.object(registry, "resolve", lambda name: name if is_made(name) else resolve(name)),
        mock.patch.object(ssd.engine, "load_target", lambda name, dtype, where, *_: target_once(name, dtype, where)),
    ):
        yield


def is_made(name: str) -> bool:
    return name.partition(":")[2] in SHAPES


def ids_of(prompts: list[str]) -> list[list[int]]:
    """The prompts as chats with smollm2-135m."""
    tokenizer = load_checkpoint(registry.resolve(SMALL), torch.bfloat16).tokenizer
    return [ssd.models.prompts.token_ids(prompt, tokenizer, 2**31, raw=False) for prompt in prompts]


def random_ids(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 10_000, (count, length), generator=generator).tolist()
