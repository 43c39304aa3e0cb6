"""Tiny random models for the engine's tests, written as Hugging Face directories.

Weights are scaled so that logits are spread like a trained model's; with a uniform distribution every comparison would be easy.
A draft is its target with noise on the weights, so that it agrees with the target on some tokens only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ssd.models.config import ModelConfig
from ssd.models.weights import DRAFT_VOCAB, LM_HEAD, expected_tensors

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# A tokenizer's vocabulary, in the order of its ids.
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed")
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"


def random_tensors(config: ModelConfig, seed: int = 0, logit_scale: float = 2.5) -> dict[str, Tensor]:
    """Weights by Hugging Face name, float32. logit_scale: the approximate standard deviation of a row of logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    tensors = {}
    for name, shape in expected_tensors(config).items():
        if name == LM_HEAD or (name == "model.embed_tokens.weight" and config.tie_embeddings):
            tensors[name] = normal(*shape, scale=logit_scale * config.hidden_size**-0.5)
        elif name == "model.embed_tokens.weight":
            tensors[name] = normal(*shape, scale=1.0)
        elif name.endswith("norm.weight"):
            tensors[name] = 1 + normal(*shape, scale=0.1)
        elif name.endswith(".bias"):
            tensors[name] = normal(*shape, scale=0.3)
        else:
            gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
            if "o_proj" in name or "down_proj" in name:
                gain = 0.5 ** int(name.split(".")[2])  # later layers change less, so that the first layers make a draft
            tensors[name] = normal(*shape, scale=gain * shape[1] ** -0.5)
    return tensors


def write_model(
    path: Path, seed: int = 0, logit_scale: float = 2.5, tokenizer: Sequence[str] | None = None, **config: Any
) -> dict[str, Tensor]:
    """Write a random Llama and return its tensors. tokenizer: see `write_tokenizer`. config: keys of config.json."""
    write_config(path, **config)
    if tokenizer is not None:
        write_tokenizer(path, tokenizer)
    tensors = random_tensors(ModelConfig.from_directory(path), seed, logit_scale)
    save_file(tensors, path / "model.safetensors")
    return tensors


def write_draft_of(
    target: Path, path: Path, noise: float, seed: int = 1, vocabulary: Sequence[int] | None = None, layers: int | None = None
) -> None:
    """Write a draft of such a target: its first layers, with noise added to every weight in proportion to its tensor's spread.

    vocabulary: ascending target ids that the draft can propose (None: all).
    """
    config = json.loads((target / "config.json").read_text())
    layers = layers or config["num_hidden_layers"]
    write_config(path, **config | {"num_hidden_layers": layers})
    if (target / "tokenizer.json").exists():
        write_tokenizer(path, read_vocabulary(target))
    generator = torch.Generator().manual_seed(seed)
    source = load_file(target / "model.safetensors")
    tensors = {}
    for name in expected_tensors(ModelConfig.from_directory(path)):
        weight = source[name]
        tensors[name] = weight + noise * weight.std() * torch.randn(weight.shape, generator=generator)
    if vocabulary is not None:
        tensors[LM_HEAD] = tensors[LM_HEAD][list(vocabulary)].contiguous()
        tensors[DRAFT_VOCAB] = torch.tensor(vocabulary, dtype=torch.int64)
    save_file(tensors, path / "model.safetensors")


def spoil_token(path: Path, token: int) -> None:
    """Make the embedding of a token NaN, which must not be tied: the logits are NaN once the token is in the text."""
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, path / "model.safetensors")


def write_config(path: Path, **config: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    family = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "eos_token_id": None}
    (path / "config.json").write_text(json.dumps(family | SIZES | config))


def vocabulary_of_bytes(swap: tuple[int, int] | None = None) -> list[str]:
    """Special tokens, every byte, and pairs of letters: 275 tokens. swap: two ids whose tokens are exchanged."""
    tokens = [END, USER, ASSISTANT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *PAIRS]
    if swap is not None:
        tokens[swap[0]], tokens[swap[1]] = tokens[swap[1]], tokens[swap[0]]
    return tokens


def write_tokenizer(path: Path, vocabulary: Sequence[str]) -> None:
    """Write a byte-level BPE tokenizer with a chat template. It can encode any text and decode any id."""
    backend = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, [(pair[0], pair[1]) for pair in PAIRS]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END, USER, ASSISTANT)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, chat_template=CHAT_TEMPLATE).save_pretrained(path)


def read_vocabulary(path: Path) -> list[str]:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    ids: Mapping[str, int] = tokenizer["model"]["vocab"]
    return sorted(ids, key=ids.__getitem__)
