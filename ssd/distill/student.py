"""The student: some of the target's layers, between the target's embeddings and a trimmed set of its output rows.

Target and student are built here as classes of the transformers package, because those have autograd and train on a GPU. They
use the same configuration and tensors that the engine loads.
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
    """A model from ids to normalised hidden states. table: [V, d], the frozen embeddings."""

    body: nn.Module
    table: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [b, T] int, padded at the end, which a causal model's earlier rows do not see. Returns [b, T, d]."""
        embedded = nn.functional.embedding(ids, self.table)
        hidden: Tensor = self.body(inputs_embeds=embedded.to(self._dtype), use_cache=False).last_hidden_state
        return hidden

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype


def build(
    config: ModelConfig, tensors: Mapping[str, Tensor], layers: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Decoder:
    """A decoder of these layers of a model, in this order. tensors: by Hugging Face name; they are copied."""
    shape = config.to_transformers(num_hidden_layers=len(layers), vocab_size=1)  # the body's own embedding is not used
    body = AutoModel.from_config(shape, attn_implementation="sdpa", dtype=dtype)  # type: ignore[no-untyped-call]
    body.embed_tokens = None
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            kind, _, rest = name.partition(".")
            if kind == "layers":
                index, _, rest = rest.partition(".")
                name = f"layers.{layers[int(index)]}.{rest}"
            parameter.copy_(tensors[f"model.{name}"])
    body.to(device)
    body.rotary_emb.inv_freq = config.rope_frequencies().float().to(device)
    return Decoder(body, tensors[EMBEDDINGS].to(device))


def weights_of(student: Decoder) -> dict[str, Tensor]:
    """The student's trained weights by Hugging Face name, float32."""
    return {f"model.{name}": parameter.detach().cpu() for name, parameter in student.body.named_parameters()}


def output_rows(tensors: Mapping[str, Tensor]) -> Tensor:
    """The target's output rows, [V, d]: its head, or its embeddings if they are tied."""
    return tensors[LM_HEAD] if LM_HEAD in tensors else tensors[EMBEDDINGS]


def outer_layers(count: int, num_layers: int) -> list[int]:
    """`count` of a model's `num_layers` layers, half of them the first and half the last. Raises SsdError."""
    if not 1 <= count <= num_layers:
        raise SsdError(f"layers is {count}; the target has {num_layers}, so it can be 1 to {num_layers}.")
    first = -(-count // 2)
    return [*range(first), *range(num_layers - count + first, num_layers)]


def frequent_ids(chats: Sequence[Chat], size: int, vocabulary: int) -> Tensor:
    """The draft's vocabulary: [min(size, vocabulary)] int32, ascending. It takes the ids that are most frequent in the answers,
    then those most frequent in the prompts, then the lowest ids (a byte-pair vocabulary is ordered by frequency)."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for chat in chats:
        counts += 1e-6 * torch.bincount(torch.tensor(chat.prompt), minlength=vocabulary)
        counts += torch.bincount(torch.tensor(chat.answer), minlength=vocabulary)
    order = torch.argsort(counts, descending=True, stable=True)
    return order[:size].sort().values.to(torch.int32)
