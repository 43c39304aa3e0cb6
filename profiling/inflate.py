"""A small trained model in a large model's shape: the same function, real acceptance and hit rates, the large shape's cost.

    python profiling/inflate.py smollm2-135m --shape Llama-3.1-8B --out DIR

Everything added is silent: spare width, heads and neurons are zero, and so are the output projections of the added layers. A
larger shape changes three things by itself, and each is undone: the RMSNorms average over more lanes (their weights and eps
make up for it), attention scales differently (the queries make up for it), and rotary frequencies depend on the head size
(theta makes up for it). Ids beyond the small vocabulary get logits far below all others, from one spare lane that holds a
tiny constant. The directory written has no tokenizer, so that an engine computes the whole head; prompts are token ids of the
small model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import SHAPES, LazyTensors
from torch import Tensor

from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.weights import EMBEDDINGS, LM_HEAD, expected_tensors, load_checkpoint

CONSTANT = 2.0**-10  # in the spare lane of every embedding; too small to change a norm
FINAL_NORM = "model.norm.weight"
LOUD = 2.0**30  # a padding row's weight on that lane, negated
SIZES = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")


def inflate(
    small: ModelConfig,
    tensors: dict[str, Tensor],
    shape: ModelConfig,
    said: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ModelConfig, LazyTensors]:
    """The small model in the large shape: its configuration and its tensors, float32.

    tensors: the small model's, by their Hugging Face names. shape: the sizes, and whether the head is tied; nothing else is
    read. said: [V] bool, the ids of the small model that may be proposed (None: all). device: where the large tensors are
    made. Raises ValueError where the small model does not fit into the shape.
    """
    _check(small, shape, LM_HEAD in tensors)
    large = replace(
        small,
        **{name: getattr(shape, name) for name in SIZES},
        tie_embeddings=shape.tie_embeddings,
        rms_norm_eps=small.rms_norm_eps * small.hidden_size / shape.hidden_size,
        rope_theta=small.rope_theta ** (shape.head_dim / small.head_dim),  # the first pairs turn as in the small model
    )
    width = range(small.hidden_size)
    neurons = range(small.intermediate_size)
    rotated, plain = _lanes(small, large, rotated=True), _lanes(small, large, rotated=False)
    group, large_group = (each.num_heads // each.num_kv_heads for each in (small, large))
    query_heads = [head // group * large_group + head % group for head in range(small.num_heads)]
    queries = [head * large.head_dim + lane for head in query_heads for lane in rotated]
    keys = [head * large.head_dim + lane for head in range(small.num_kv_heads) for lane in rotated]
    values = [head * large.head_dim + lane for head in range(small.num_kv_heads) for lane in plain]
    seen = [head * large.head_dim + lane for head in query_heads for lane in plain]
    lanes: dict[str, tuple[Sequence[int], Sequence[int]]] = {  # the rows and columns that take a small weight
        "q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (values, width), "o_proj": (width, seen),
        "gate_proj": (neurons, width), "up_proj": (neurons, width), "down_proj": (width, neurons),
    }  # fmt: skip
    norm_scale = (small.hidden_size / large.hidden_size) ** 0.5
    query_scale = (large.head_dim / small.head_dim) ** 0.5

    generator = torch.Generator(device).manual_seed(0)
    said = torch.ones(small.vocab_size, dtype=torch.bool) if said is None else said
    silent = torch.cat([~said, torch.ones(large.vocab_size - small.vocab_size, dtype=torch.bool)])  # [large V]
    if bool(silent.any()) and large.hidden_size == small.hidden_size:
        raise ValueError("ids that are never said need a spare lane; choose a shape with a larger hidden_size.")
    spare = small.hidden_size if bool(silent.any()) else None

    def make(name: str, size: tuple[int, ...]) -> Tensor:
        weight = torch.zeros(size, device=device)
        kind = name.split(".")[-2]
        if name in (EMBEDDINGS, LM_HEAD):
            own = name if name in tensors else EMBEDDINGS
            weight[: small.vocab_size, : small.hidden_size] = tensors[own].to(device)
            if spare is not None and name == EMBEDDINGS:
                weight[: small.vocab_size, spare] = CONSTANT
            if spare is not None and (name == LM_HEAD or large.tie_embeddings):
                weight[silent, spare] = -LOUD
        elif name not in tensors:  # an added layer
            if kind in lanes and kind not in ("o_proj", "down_proj"):
                weight.normal_(0, size[-1] ** -0.5, generator=generator)
            elif "norm" in kind:
                weight[: small.hidden_size] = 1
        elif "norm" in kind:
            weight[: small.hidden_size] = tensors[name].to(device) * norm_scale
            if name == FINAL_NORM and spare is not None:
                weight[spare] = 1
        else:
            rows, columns = (torch.tensor(each, device=device) for each in lanes[kind])
            source = tensors[name].to(device).float() * (query_scale if kind == "q_proj" else 1)
            if source.dim() == 1:  # a bias
                weight[rows] = source
            else:
                weight[rows[:, None], columns] = source
        return weight

    return large, LazyTensors(expected_tensors(large), make)


def _check(small: ModelConfig, shape: ModelConfig, own_head: bool) -> None:
    if shape.tie_embeddings and own_head:
        raise ValueError("the small model's head is its own, and the shape's is tied; choose a shape whose head is not tied.")
    if small.qk_norm or small.frequency_factors is not None:
        raise ValueError("a model with norms on its heads, or with frequency factors, cannot be inflated; choose another one.")
    for name in SIZES:
        if getattr(shape, name) < getattr(small, name):
            raise ValueError(
                f"{name} is {getattr(shape, name)}; the small model has {getattr(small, name)}, so choose a larger shape."
            )
    if shape.num_heads // shape.num_kv_heads < small.num_heads // small.num_kv_heads:
        raise ValueError("more query heads share a key head in the small model than in the large one; choose another shape.")


def _lanes(small: ModelConfig, large: ModelConfig, *, rotated: bool) -> list[int]:
    """The lanes of a large head that take a small head's lanes. Each half of a rotated head goes to the start of the large
    half."""
    if not rotated:
        return list(range(small.head_dim))
    half, large_half = small.head_dim // 2, large.head_dim // 2
    return [*range(half), *range(large_half, large_half + half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", help="the small model: a known model, a directory or a .gguf file")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True, help="the large model's shape")
    parser.add_argument("--out", type=Path, required=True, help="folder of the inflated model")
    args = parser.parse_args()
    checkpoint = load_checkpoint(registry.resolve(args.small), torch.float32)
    config, tensors = inflate(checkpoint.config, checkpoint.tensors, SHAPES[args.shape])
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensors.pop(name).bfloat16() for name in list(tensors.shapes)}
    save_file(weights, args.out / "model.safetensors")
    keys = config.to_transformers(dtype="bfloat16").to_diff_dict()
    (args.out / "config.json").write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
