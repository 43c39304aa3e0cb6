"""Loading a target and its draft so that they fit: checks vocabularies, drops padding ids, shares weights where possible."""

from __future__ import annotations

import re
import warnings
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
from ssd.options import EngineOptions, WeightsName

OnProgress = Callable[[float], None]
"""Called with the fraction done, 0 to 1."""

_SELF_DRAFT = re.compile(r"self:(\d+)")


@dataclass
class Target:
    """The target model and its tokenizer. tokenizer: None if the checkpoint has none; prompts must then be token ids."""

    name: str
    model: Transformer
    tokenizer: Tokenizer | None
    context: int  # the positions it was trained for


@dataclass
class Draft:
    """A draft model. id_of: [Vd] int32, the target id of each of its columns. draft_id_of: [V] int32, the column of each target
    id or −1. Both are on the draft's device. Both are None if the draft's ids are the target's (it may have fewer).

    A token without a column is never proposed."""

    model: Model
    id_of: Tensor | None = None
    draft_id_of: Tensor | None = None


def load_target(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    positions_for: Callable[[int], int],
    progress: OnProgress,
    weights: WeightsName = EngineOptions.weights,
) -> Target:
    """Load the target model. positions_for: given the model's context, returns how many positions to prepare. weights: format
    of its matrices.

    Raises SsdError, CheckpointError.
    """
    checkpoint = load_checkpoint(registry.resolve(name), dtype, lambda fraction: progress(fraction / 2))
    if checkpoint.config.borrows_embeddings:
        raise SsdError(
            f"{name!r} is a draft without embeddings of its own; give it as draft, beside the target it was made for."
        )
    model = Transformer.from_tensors(
        checkpoint.config,
        checkpoint.tensors,
        dtype=dtype,
        device=device,
        positions=positions_for(checkpoint.config.max_position),
        columns=_real_ids(checkpoint),
        weights=weights,
        progress=lambda fraction: progress((1 + fraction) / 2),
    )
    return Target(name, model, checkpoint.tokenizer, checkpoint.config.max_position)


def load_draft(
    name: str,
    target: Target,
    positions_for: Callable[[int], int],
    device: torch.device | None = None,
    weights: WeightsName = EngineOptions.weights,
) -> Draft:
    """Load a draft for this target. name: "self:N" for the target's first N layers, or a path, hub id or known model.
    positions_for: given the draft's context, at most the target's, returns how many positions to prepare. device: None for the
    target's. weights: format of its matrices.

    Raises SsdError, CheckpointError.
    """
    device = device or target.model.device
    layers = target.model.config.num_layers
    if name.startswith("self:"):
        match = _SELF_DRAFT.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= layers:
            raise SsdError(f"draft is {name!r}; for {target.name!r} it can be 'self:1' to 'self:{layers}'.")
        return Draft(target.model.first_layers(int(match[1])).on(device))
    checkpoint = load_checkpoint(registry.resolve(name), target.model.dtype)
    renamed = _renamed(target, checkpoint, name)
    vocabulary = target.model.vocab_size
    if checkpoint.config.borrows_embeddings:
        _lend_embeddings(target, checkpoint, name)

    def transformer(columns: int | Tensor) -> Transformer:
        return Transformer.from_tensors(
            checkpoint.config,
            checkpoint.tensors,
            dtype=target.model.dtype,
            device=device,
            positions=positions_for(min(target.context, checkpoint.config.max_position)),
            columns=columns,
            weights=weights,
        )

    real = min(vocabulary, _real_ids(checkpoint))
    if checkpoint.draft_vocab is None and not renamed:
        return Draft(transformer(real))
    ids = torch.arange(real, dtype=torch.int32) if checkpoint.draft_vocab is None else checkpoint.draft_vocab
    if int(ids[-1]) >= vocabulary:
        raise SsdError(
            f"the draft {name!r} proposes id {int(ids[-1])}, but {target.name!r} has {vocabulary} ids; use the target it was made "
            "for."
        )
    columns = torch.isin(ids, torch.tensor(renamed, dtype=torch.int32), invert=True).nonzero().flatten()
    if not len(columns):
        raise SsdError(f"the draft {name!r} proposes only tokens that {target.name!r} names differently; use another draft.")
    ids = ids[columns].to(device)
    draft_id_of = torch.full((vocabulary,), -1, dtype=torch.int32, device=device)
    draft_id_of[ids.long()] = torch.arange(len(ids), dtype=torch.int32, device=device)
    return Draft(transformer(columns), ids, draft_id_of)


def _renamed(target: Target, draft: Checkpoint, name: str) -> list[int]:
    """The ids whose token the two tokenizers name differently, after a warning about them.

    The draft must not propose them: it learnt another token there. Raises SsdError if one is no special or added token.
    """
    if target.tokenizer is None or draft.tokenizer is None:
        return []
    renamed = check_compatible(target.tokenizer, draft.tokenizer)
    if renamed:
        shown = [f"{target.tokenizer.token_of(i)!r} (the draft's {draft.tokenizer.token_of(i)!r})" for i in renamed[:3]]
        more = [f"{len(renamed) - 3} more"] if len(renamed) > 3 else []
        warnings.warn(
            f"the draft {name!r} never proposes special tokens that the target names differently: {', '.join(shown + more)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return renamed


def _lend_embeddings(target: Target, draft: Checkpoint, name: str) -> None:
    """Give the target's embeddings, rope scaling and, if tied, output rows to a draft that `ssd distill` made."""
    config = target.model.config
    for size in ("vocab_size", "hidden_size"):
        if getattr(config, size) != getattr(draft.config, size):
            raise SsdError(
                f"the draft {name!r} was made for a target of {size} {getattr(draft.config, size)}, and {target.name!r} has "
                f"{getattr(config, size)}; use the target it was made for."
            )
    draft.config = replace(draft.config, rope_scaling=config.rope_scaling, frequency_factors=config.frequency_factors)
    table = draft.tensors[EMBEDDINGS] = target.model.embeddings
    if LM_HEAD not in draft.tensors and draft.draft_vocab is not None:
        rows = table[draft.draft_vocab.to(table.device).long()]
        if any(name.endswith(SCALE) for name in draft.tensors):
            rows, draft.tensors[LM_HEAD + SCALE] = quantise(rows)
        draft.tensors[LM_HEAD] = rows


def _real_ids(checkpoint: Checkpoint) -> int:
    """The number of head rows that stand for a token. The rows after them are padding and must never be drawn."""
    known = checkpoint.tokenizer.vocab_size if checkpoint.tokenizer is not None else checkpoint.config.vocab_size
    return min(known, checkpoint.config.vocab_size)
