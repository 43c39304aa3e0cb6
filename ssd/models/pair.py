"""A target and its draft, loaded so that they fit each other: vocabularies checked, padding masked, weights shared where they can be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssd.errors import SsdError
from ssd.models import registry
from ssd.models.model import Model
from ssd.models.quantise import SCALE, quantise
from ssd.models.tokenizer import Tokenizer, check_compatible
from ssd.models.transformer import Transformer
from ssd.models.weights import EMBEDDINGS, LM_HEAD, Checkpoint, load_checkpoint

Progress = Callable[[float], None]

_SELF_DRAFT = re.compile(r"self:(\d+)")


@dataclass
class Target:
    """The target model and what speaks its language. tokenizer: None where its checkpoint has none; prompts are then token ids."""

    name: str
    model: Transformer
    tokenizer: Tokenizer | None
    context: int  # positions it was trained for


@dataclass
class Draft:
    """A draft model. id_of: [Vd] int32, the target id of each of its columns, and draft_id_of: [V] int32, the column of each target id or
    −1, both on its device; None where its columns are the target's ids (it may have fewer)."""

    model: Model
    id_of: Tensor | None = None
    draft_id_of: Tensor | None = None


def load_target(
    name: str, dtype: torch.dtype, device: torch.device, places: Callable[[int], int], progress: Progress
) -> Target:
    """places: positions to prepare for a model with this context. progress: called with the
    fraction done, 0 to 1. Raises SsdError, CheckpointError."""
    checkpoint = load_checkpoint(registry.resolve(name), dtype, lambda fraction: progress(fraction / 2))
    if checkpoint.config.borrows_embeddings:
        raise SsdError(
            f"{name!r} is a draft without embeddings of its own; give it as draft, beside the target it was made for."
        )
    positions = places(checkpoint.config.max_position)
    model = _transformer(
        checkpoint, dtype, device, positions, _real_ids(checkpoint), lambda fraction: progress((1 + fraction) / 2)
    )
    return Target(name, model, checkpoint.tokenizer, checkpoint.config.max_position)


def load_draft(name: str, target: Target, positions: int, device: torch.device | None = None) -> Draft:
    """name: "self:N", the target's first N layers; or a path, hub id or known model. device: None is the target's. Raises SsdError,
    CheckpointError."""
    device = device or target.model.device
    layers = target.model.config.num_layers
    if name.startswith("self:"):
        match = _SELF_DRAFT.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= layers:
            raise SsdError(f"draft is {name!r}; of {target.name!r} it can be 'self:1' to 'self:{layers}'.")
        return Draft(target.model.first_layers(int(match[1])).on(device))
    checkpoint = load_checkpoint(registry.resolve(name), target.model.dtype)
    if target.tokenizer is not None and checkpoint.tokenizer is not None:
        check_compatible(target.tokenizer, checkpoint.tokenizer)
    vocabulary = target.model.vocab_size
    if checkpoint.config.borrows_embeddings:
        _lend_embeddings(target, checkpoint, name)
    if checkpoint.draft_vocab is None:
        columns = min(vocabulary, _real_ids(checkpoint))
        return Draft(_transformer(checkpoint, target.model.dtype, device, positions, columns))
    ids = checkpoint.draft_vocab.to(device)
    if int(ids[-1]) >= vocabulary:
        raise SsdError(
            f"the draft {name!r} proposes id {int(ids[-1])}, but {target.name!r} has {vocabulary}; use the target it was made for."
        )
    draft_id_of = torch.full((vocabulary,), -1, dtype=torch.int32, device=device)
    draft_id_of[ids.long()] = torch.arange(len(ids), dtype=torch.int32, device=device)
    return Draft(_transformer(checkpoint, target.model.dtype, device, positions, len(ids)), ids, draft_id_of)


def _lend_embeddings(target: Target, draft: Checkpoint, name: str) -> None:
    """Give a draft that `ssd distill` made the target's embeddings, and what goes with them."""
    ours, theirs = target.model.config, draft.config
    for what in ("vocab_size", "hidden_size"):
        if getattr(ours, what) != getattr(theirs, what):
            raise SsdError(
                f"the draft {name!r} was made for a target of {what} {getattr(theirs, what)}, and {target.name!r} has "
                f"{getattr(ours, what)}; use the target it was made for."
            )
    draft.config = replace(theirs, rope_scaling=ours.rope_scaling, frequency_factors=ours.frequency_factors)
    table = draft.tensors[EMBEDDINGS] = target.model.embeddings
    if LM_HEAD not in draft.tensors and draft.draft_vocab is not None:
        rows = table[draft.draft_vocab.to(table.device).long()]
        if any(name.endswith(SCALE) for name in draft.tensors):
            rows, draft.tensors[LM_HEAD + SCALE] = quantise(rows)
        draft.tensors[LM_HEAD] = rows


def _real_ids(checkpoint: Checkpoint) -> int:
    """Rows of the head that stand for a token; those beyond are padding and must never be drawn."""
    known = checkpoint.tokenizer.vocab_size if checkpoint.tokenizer is not None else checkpoint.config.vocab_size
    return min(known, checkpoint.config.vocab_size)


def _transformer(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    positions: int,
    columns: int,
    progress: Progress = lambda fraction: None,
) -> Transformer:
    return Transformer.from_tensors(checkpoint.config, checkpoint.tensors, dtype, device, positions, columns, progress)
