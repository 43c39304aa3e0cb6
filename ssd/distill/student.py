"""The student: some of the target's layers, between the target's own embeddings and a trimmed set of its output rows.

Both models are transformers' classes here, built from the configuration and the tensors that the engine loads too: autograd, and
training on a GPU, come with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel

from ssd.distill.chats import Chat
from ssd.errors import SsdError
from ssd.models.config import ModelConfig
from ssd.models.weights import EMBEDDINGS, LM_HEAD


@dataclass
class Decoder:
    """ids → normalised hidden states. table: [V, d], the embeddings, frozen."""

    body: nn.Module
    table: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [b, T] int, padded at the end (a causal model does not see it). Returns [b, T, d]."""
        embedded = nn.functional.embedding(ids, self.table)
        hidden: Tensor = self.body(inputs_embeds=embedded.to(self._dtype), use_cache=False).last_hidden_state
        return hidden

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype


def build(
    config: ModelConfig, tensors: Mapping[str, Tensor], layers: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Decoder:
    """A decoder of these layers of a model, in this order. tensors: by their Hugging Face names; copied."""
    shape = config.to_transformers(num_hidden_layers=len(layers), vocab_size=1)  # its own embedding is not used
    body = AutoModel.from_config(shape, attn_implementation="sdpa", dtype=dtype)  # type: ignore[no-untyped-call]
    body.embed_tokens = None
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            kind, _, rest = name.partition(".")
            if kind == "layers":
                place, _, rest = rest.partition(".")
                name = f"layers.{layers[int(place)]}.{rest}"
            parameter.copy_(tensors[f"model.{name}"])
    body.to(device)
    body.rotary_emb.inv_freq = config.rope_frequencies().float().to(device)
    return Decoder(body, tensors[EMBEDDINGS].to(device))


def weights_of(student: Decoder) -> dict[str, Tensor]:
    """The student's own weights by their Hugging Face names, float32."""
    return {f"model.{name}": parameter.detach().cpu() for name, parameter in student.body.named_parameters()}


def output_rows(tensors: Mapping[str, Tensor]) -> Tensor:
    """The target's output rows, [V, d]: its head, or its embeddings where they are tied."""
    return tensors[LM_HEAD] if LM_HEAD in tensors else tensors[EMBEDDINGS]


def outer_layers(count: int, of: int) -> list[int]:
    """The first and the last layers of a model, half of each: what reads the words, and what writes them. Raises SsdError."""
    if not 1 <= count <= of:
        raise SsdError(f"layers is {count}; the target has {of}, so it can be 1 to {of}.")
    first = -(-count // 2)
    return [*range(first), *range(of - count + first, of)]


def frequent_ids(chats: Sequence[Chat], size: int, vocabulary: int) -> Tensor:
    """[min(size, vocabulary)] int32, ascending: the most frequent ids of the answers, then of the messages, then the lowest ids
    (a byte-pair vocabulary is ordered by frequency)."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for chat in chats:
        counts += 1e-6 * torch.bincount(torch.tensor(chat.prompt), minlength=vocabulary)
        counts += torch.bincount(torch.tensor(chat.answer), minlength=vocabulary)
    order = torch.argsort(counts, descending=True, stable=True)
    return order[:size].sort().values.to(torch.int32)
