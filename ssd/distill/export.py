"""The draft as files: model.safetensors and config.json as the engine loads them; README.md, the model card; report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save
from torch import Tensor

import ssd
from ssd.distill.report import SHOWN, Worth
from ssd.models import registry
from ssd.models.config import BORROWED, ModelConfig
from ssd.models.quantise import SCALE, quantise
from ssd.models.weights import DRAFT_VOCAB

if TYPE_CHECKING:
    from ssd.distill.recipe import Recipe


@dataclass
class MadeFrom:
    """What went into a draft. layers: of the target, that it started from; own: chats that a user's prompts began; answer_tokens: in all
    chats it was trained on."""

    target: str
    layers: Sequence[int]
    chats: int
    own: int
    answer_tokens: int
    steps: int


def write_draft(
    out: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    draft_vocab: Tensor,
    recipe: Recipe,
    made_from: MadeFrom,
    found: Mapping[str, Worth],
) -> None:
    """config: the draft's shape. weights: by their Hugging Face names."""
    tensors = {DRAFT_VOCAB: draft_vocab}
    for name, weight in weights.items():
        if recipe.weights == "int8" and weight.dim() == 2:
            tensors[name], tensors[name + SCALE] = quantise(weight)
        else:
            tensors[name] = weight.bfloat16().contiguous()
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    keys = config.to_transformers(dtype="bfloat16").to_diff_dict() | {BORROWED: "target"}
    report = {
        "made_from": asdict(made_from),
        "recipe": asdict(recipe),
        "held_out": {domain: asdict(each) for domain, each in found.items()},
    }
    for name, document in (("config.json", keys), ("report.json", report)):
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    size = sum(tensor.nbytes for tensor in tensors.values())
    card = _card(recipe, made_from, found, size, len(draft_vocab))
    (out / "README.md").write_text(card, encoding="utf-8")


def _card(recipe: Recipe, made_from: MadeFrom, found: Mapping[str, Worth], size: int, vocab: int) -> str:
    target = made_from.target
    known = registry.KNOWN.get(target)
    source = f"{known.source}, licensed under {known.licence}" if known is not None else f"`{target}`, under its licence"
    table = ["| held-out answers | tokens | top-1 agreement | " + " | ".join(f"K = {k}" for k in SHOWN) + " |"]
    table.append("| --- " * (3 + len(SHOWN)) + "|")
    for domain, each in found.items():
        figures = " | ".join(f"{each.tokens_per_round[k]:.2f}" for k in SHOWN)
        table.append(f"| {domain}, {each.answers} | {each.tokens} | {each.agreement:.1%} | {figures} |")
    users = f", {made_from.own} of them from a user's prompts" if made_from.own else " by itself"
    paragraphs = [
        f"# A draft for {target}",
        f"A decoder of {recipe.layers} layers ({size / 1e6:.1f} MB) that proposes what `{target}` will say next, for speculative "
        f"decoding with `ssd`. It is no model to chat with: it borrows the target's embeddings, and can say {vocab} of its tokens.",
        f"Made by `ssd distill` (ssd {ssd.__version__}) from {source}. Its layers start from the target's layers "
        f"{', '.join(map(str, made_from.layers))}, and were trained for {made_from.steps} steps on {made_from.chats} chats that the "
        f"target made up{users} ({made_from.answer_tokens} tokens of answers). It is a derivative of the target, under its licence.",
        "Loss: KL(target ‖ draft) over the draft's vocabulary, and a little of the distance between the last hidden states; AdamW, "
        f"learning rate {recipe.learning_rate:g} with warm-up and cosine. report.json has all settings.",
        "On greedy answers held out from training; on the right, the tokens that a round of greedy speculative decoding commits, by "
        "lookahead K:",
        "\n".join(table),
    ]
    return "\n\n".join(paragraphs) + "\n"
