"""A target and its draft, loaded once for several engines: models with files, or models made here in a shape of shapes.py:

    random:SHAPE          random weights
    bigram:SHAPE          follows each token with one other token
    bigram-draft:SHAPE    the same, but one time in five puts another token first
    inflated:SHAPE        smollm2-135m in this shape (inflate.py)
    inflated-draft:SHAPE  the draft that comes with smollm2-135m, in this shape

A pair with random weights shows times only: its draft guesses nothing right. A bigram pair needs no file, and accepts and hits
at rates that are chosen, not found. An inflated pair accepts and hits exactly as the small pair does. All have the cost of the
large shapes. A model made here has no tokenizer: its prompts are token ids of smollm2-135m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import shapes
import torch
from inflate import inflate
from torch import Tensor

from ssd import Engine
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.pair import Draft, Target, load_draft, load_target
from ssd.models.prompts import token_ids
from ssd.models.quantise import SCALE, dequantise, quantise
from ssd.models.transformer import Transformer
from ssd.models.weights import EMBEDDINGS, LM_HEAD, load_checkpoint
from ssd.options import MAX_LOOKAHEAD, EngineOptions, WeightsName
from ssd.runtime.placement import Placement, place

KINDS = ("random", "bigram", "bigram-draft", "inflated", "inflated-draft")
SMALL = "smollm2-135m"  # the model that is inflated
WRONG = 0.2  # share of the tokens after which a bigram draft does not put the target's token first
BEYOND = 2 * (MAX_LOOKAHEAD + 1)  # rotary positions past the context, for padding rows and branches


@dataclass
class Models:
    """A target and its draft by name, and engines that share their weights.

    draft_name: "auto" (the target's own), "self:N", "ngram", None, or a name like the target's. where: dtype, weights,
    device and draft_device, as for `Engine`.
    """

    target_name: str
    draft_name: str | None
    where: Mapping[str, Any]

    def engine(self, mode: str, **options: Any) -> Engine:
        """An engine in this mode; options: other options of `Engine`."""
        draft = None if mode == "ar" else self.draft
        return engine_of(self.target, draft, mode=mode, **self.where, **options)

    @cached_property
    def target(self) -> Target:
        dtype, device = self._placement.dtype, self._placement.target_device
        if is_made(self.target_name):
            model = _made_model(self.target_name, dtype, device, self._weights)
            return Target(self.target_name, model, None, model.config.max_position)
        return load_target(
            self.target_name, dtype, device, lambda context: context + BEYOND, lambda fraction: None, self._weights
        )

    @cached_property
    def draft(self) -> Draft | Literal["ngram"] | None:
        name = registry.draft_named(self.draft_name, self.target_name)
        if name is None:
            return None
        if name == "ngram":
            return "ngram"
        if is_made(name):
            vocabulary = self.target.model.vocab_size
            return Draft(_made_model(name, self._placement.dtype, self._placement.draft_device, self._weights, vocabulary))
        return load_draft(name, self.target, lambda context: context + BEYOND, self._placement.draft_device, self._weights)

    @cached_property
    def _placement(self) -> Placement:
        return place(self._options)

    @property
    def _weights(self) -> WeightsName:
        return self._options.weights

    @cached_property
    def _options(self) -> EngineOptions:
        return EngineOptions.of(self.target_name, **self.where)


def engine_of(target: Target, draft: Draft | Literal["ngram"] | None, **options: Any) -> Engine:
    """An engine from loaded models; options: as for `Engine`."""
    name = "auto" if isinstance(draft, Draft) else draft
    return Engine.of(target, draft if isinstance(draft, Draft) else None, EngineOptions.of(target.name, draft=name, **options))


def is_made(name: str) -> bool:
    """Whether a name is one of a model made here."""
    kind, _, shape = name.partition(":")
    return kind in KINDS and shape in shapes.SHAPES


def _made_model(
    name: str, dtype: torch.dtype, device: torch.device, weights: WeightsName, columns: int | None = None
) -> Transformer:
    """columns: the largest vocabulary that its head may have."""
    kind, _, shape = name.partition(":")
    if kind == "random":
        config = shapes.SHAPES[shape]
        tensors = shapes.random_tensors(config, dtype, device)
    elif kind.startswith("bigram"):
        config = replace(shapes.SHAPES[shape], tie_embeddings=False)
        tensors = shapes.bigram_tensors(config, dtype, device, WRONG if kind == "bigram-draft" else 0.0)
    else:
        config, tensors = (inflated_draft if kind == "inflated-draft" else inflated_target)(shape, device)
    columns = min(columns or config.vocab_size, config.vocab_size)
    return Transformer.from_tensors(config, tensors, dtype, device, config.max_position + BEYOND, columns, weights)


def inflated_target(shape: str, device: torch.device) -> tuple[ModelConfig, shapes.LazyTensors]:
    """smollm2-135m in this shape."""
    small = load_checkpoint(registry.resolve(SMALL), torch.float32)
    return inflate(small.config, small.tensors, shapes.SHAPES[shape], device=device)


def inflated_draft(shape: str, device: torch.device) -> tuple[ModelConfig, shapes.LazyTensors]:
    """The draft that comes with smollm2-135m, in this shape. It proposes the small draft's ids only, as the target's ids."""
    small = load_checkpoint(registry.resolve(SMALL), torch.float32)
    own = load_checkpoint(Path(registry.default_draft(SMALL) or ""), torch.float32)
    assert own.draft_vocab is not None
    tensors: dict[str, Tensor] = {}
    for name, weight in own.tensors.items():
        if not name.endswith(SCALE):
            scale = own.tensors.get(name + SCALE)
            tensors[name] = weight if scale is None else dequantise(weight, scale)
    ids, table = own.draft_vocab.long(), small.tensors[EMBEDDINGS]
    said = torch.zeros(len(table), dtype=torch.bool)
    said[ids] = True
    head = torch.zeros_like(table)
    head[ids] = tensors[LM_HEAD] if LM_HEAD in tensors else dequantise(*quantise(table[ids]))
    # The large shape ties its head to the embeddings. This head cannot be tied, and a pass reads as many bytes.
    config = replace(own.config, tie_embeddings=False, borrows_embeddings=False)
    large = replace(shapes.SHAPES[shape], tie_embeddings=False)
    return inflate(config, tensors | {EMBEDDINGS: table, LM_HEAD: head}, large, said=said, device=device)


def ids_of(prompts: list[str]) -> list[list[int]]:
    """Token ids of the prompts, each as a chat with smollm2-135m."""
    tokenizer = load_checkpoint(registry.resolve(SMALL), torch.bfloat16).tokenizer
    return [token_ids(prompt, tokenizer, 2**31, raw=False) for prompt in prompts]


def random_ids(count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` random token ids."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 10_000, (count, length), generator=generator).tolist()
