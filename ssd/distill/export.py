"""Writing a draft to files: model.safetensors and config.json for the engine, README.md as the model card, and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

import ssd
from ssd.distill.recipe import Recipe
from ssd.distill.report import SHOWN, HeldOutScore
from ssd.models import registry
from ssd.models.config import BORROWED, ModelConfig
from ssd.models.quantise import SCALE, quantise
from ssd.models.weights import DRAFT_VOCAB


@dataclass
class Provenance:
    """The origin of a draft. layers: the target's layers that it started from. chats: how many it was trained on. own: how many
    of them answer a user's own prompts. answer_tokens: the tokens of all their answers. steps: how many training steps it
    took."""

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
    provenance: Provenance,
    scores: Mapping[str, HeldOutScore],
) -> None:
    """Write the draft's files to the folder `out`. config: the draft's configuration. weights: by Hugging Face name.
    draft_vocab: [Vd] int32, ascending target ids. scores: on held-out chats, by domain."""
    tensors = {DRAFT_VOCAB: draft_vocab}
    for name, weight in weights.items():
        if recipe.weights == "int8" and weight.dim() == 2:
            tensors[name], tensors[name + SCALE] = quantise(weight)
        else:
            tensors[name] = weight.bfloat16().contiguous()
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    keys = config.to_transformers(dtype="bfloat16").to_diff_dict() | {BORROWED: "target"}
    report = {
        "made_from": asdict(provenance),
        "recipe": asdict(recipe),
        "held_out": {domain: asdict(score) for domain, score in scores.items()},
    }
    for name, document in (("config.json", keys), ("report.json", report)):
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    size = sum(tensor.nbytes for tensor in tensors.values())
    card = _card(recipe, provenance, scores, size, len(draft_vocab))
    (out / "README.md").write_text(card, encoding="utf-8")


def _card(recipe: Recipe, provenance: Provenance, scores: Mapping[str, HeldOutScore], size: int, vocab: int) -> str:
    target = provenance.target
    known = registry.KNOWN.get(target)
    source = f"{known.source}, licensed under {known.licence}" if known is not None else f"`{target}`, under its licence"
    table = ["| held-out answers | tokens | top-1 agreement | " + " | ".join(f"K = {k}" for k in SHOWN) + " |"]
    table.append("| --- " * (3 + len(SHOWN)) + "|")
    for domain, score in scores.items():
        figures = " | ".join(f"{score.tokens_per_round[k]:.2f}" for k in SHOWN)
        table.append(f"| {domain}, {score.answers} | {score.tokens} | {score.agreement:.1%} | {figures} |")
    users = f", {provenance.own} of them from a user's prompts" if provenance.own else " by itself"
    paragraphs = [
        f"# A draft for {target}",
        f"A decoder of {recipe.layers} layers ({size / 1e6:.1f} MB) that proposes the next tokens of `{target}`, for speculative "
        f"decoding with `ssd`. It is not a chat model: it borrows the target's embeddings, and knows only {vocab} of its tokens.",
        f"Made by `ssd distill` (ssd {ssd.__version__}) from {source}. Its layers start from the target's layers "
        f"{', '.join(map(str, provenance.layers))}, and were trained for {provenance.steps} steps on {provenance.chats} chats that the "
        f"target wrote{users} ({provenance.answer_tokens} tokens of answers). It is a derivative of the target, under its licence.",
        "Loss: KL(target ‖ draft) over the draft's vocabulary, plus a small term for the distance between the last hidden states; "
        f"AdamW, learning rate {recipe.learning_rate:g} with warm-up and cosine. report.json has all settings.",
        "Scores on greedy answers held out from training. The columns on the right are tokens committed per round of greedy "
        "speculative decoding, by lookahead K:",
        "\n".join(table),
    ]
    return "\n\n".join(paragraphs) + "\n"
