"""The decoder's logits equal transformers' in float32, for every switch of the configuration; and each switch matters.

The error is the largest absolute difference of two logits over the largest absolute logit. Tiny models are scaled so that
logits reach about 10, and sequences run well beyond the original context of their rope scaling.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tiny
from ssd.errors import SsdError
from ssd.kv.cache import PAGE_SIZE, KVCache, Rows
from ssd.models import registry
from ssd.models.config import ModelConfig
from ssd.models.transformer import CUDA_HEAD_SIZES, MAX_CPU_HEAD_SIZE, MAX_GROUP, Transformer, check_sizes
from ssd.models.weights import load_checkpoint

BOUND = 1e-4
CPU = torch.device("cpu")
LENGTHS = (1, 63, 65, 200, 300)  # lengths of sequences; the original context is 64


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def build(config: ModelConfig, tensors: dict[str, Tensor], columns: int | None = None) -> Transformer:
    """Build a Transformer from a copy of the tensors' dict."""
    return Transformer.from_tensors(config, dict(tensors), torch.float32, CPU, config.max_position, columns)


def teacher_forced(model: Transformer, ids: list[int], chunk: int = 128) -> Tensor:
    """The logits after every token, [tokens, V], of one sequence whose pages are scattered in the cache."""
    count = -(-len(ids) // PAGE_SIZE)
    pages = 1 + torch.randperm(count, generator=torch.Generator().manual_seed(0)).int()
    cache = KVCache(model.config, 1 + count, model.dtype, CPU)
    positions = torch.arange(len(ids), dtype=torch.int32)
    kv_slots = pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    hidden = []
    with torch.inference_mode():
        for rows in (slice(first, first + chunk) for first in range(0, len(ids), chunk)):
            hidden.append(
                model.forward(
                    Rows(
                        ids=torch.tensor(ids[rows], dtype=torch.int32),
                        positions=positions[rows],
                        kv_slots=kv_slots[rows],
                        row_seq=torch.zeros_like(positions[rows]),
                        prefix_len=positions[rows] + 1,
                        page_table=pages[None],
                    ),
                    cache,
                )
            )
        return model.logits(torch.cat(hidden))


def expected_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def random_ids(vocab_size: int, length: int) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()


# Tiny random models -----------------------------------------------------------------------------------------------------------

LLAMA3 = {"rope_parameters": tiny.LLAMA3_ROPE | {"rope_theta": 10000.0}}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, every head its own keys": {"num_key_value_heads": 4},
    "llama, one key head": {"num_key_value_heads": 1},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "llama 3": LLAMA3,
    "llama 3, tied": LLAMA3 | {"tie_word_embeddings": True, "num_attention_heads": 8},
    "llama 3, heads wider than the model": LLAMA3 | {"head_dim": 32, "num_key_value_heads": 1},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}


def random_model(path: Path, **config: Any) -> tuple[ModelConfig, dict[str, Tensor], Any]:
    """Returns (our configuration, the tensors, transformers' model of the same directory)."""
    tensors = tiny.write_model(path, seed=2, logit_scale=3.0, **config)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return ModelConfig.from_directory(path), tensors, theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tmp_path: Path, family: str) -> None:
    config, tensors, theirs = random_model(tmp_path, **FAMILIES[family])
    ours = build(config, tensors)
    for length in LENGTHS:
        ids = random_ids(config.vocab_size, length)
        expected = expected_logits(theirs, ids)
        assert error(teacher_forced(ours, ids), expected) <= BOUND, length
    assert 6 < float(expected.abs().max()) < 30  # the bound is for logits of this size


def without_rope_scaling(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    return replace(config, rope_scaling=None)


def with_heads_dealt_in_turn(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    """Query head h reads key head h mod kv_heads instead of its group's key head."""
    repeat_key_heads(config, tensors, lambda heads, times: heads.repeat(times, 1, 1))
    return replace(config, num_kv_heads=config.num_heads)


def with_the_embedding_as_head(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    del tensors["lm_head.weight"]
    return replace(config, tie_embeddings=True)


def with_a_head_of_its_own(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = table.flip(0)
    return replace(config, tie_embeddings=False)


def without_head_norms(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    return replace(config, qk_norm=False)


def repeat_key_heads(config: ModelConfig, tensors: dict[str, Tensor], repeat: Callable[[Tensor, int], Tensor]) -> None:
    for name in [name for name in tensors if "k_proj" in name or "v_proj" in name]:
        heads = tensors[name].view(config.num_kv_heads, config.head_dim, -1)
        tensors[name] = repeat(heads, config.num_heads // config.num_kv_heads).flatten(0, 1)


@pytest.mark.parametrize(
    "family,mistake",
    [
        ("llama 3", without_rope_scaling),
        ("llama 3, tied", without_rope_scaling),
        ("llama 3", with_heads_dealt_in_turn),
        ("llama 3", with_the_embedding_as_head),
        ("llama 3, tied", with_a_head_of_its_own),
        ("qwen3", without_head_norms),
    ],
)
def test_a_wrong_switch_of_the_configuration_changes_the_logits(
    tmp_path: Path, family: str, mistake: Callable[[ModelConfig, dict[str, Tensor]], ModelConfig]
) -> None:
    config, tensors, theirs = random_model(tmp_path, **FAMILIES[family])
    ids = random_ids(config.vocab_size, 200)
    expected = expected_logits(theirs, ids)
    assert error(teacher_forced(build(mistake(config, tensors), tensors), ids), expected) > 100 * BOUND


def test_grouped_heads_equal_repeated_key_heads(tmp_path: Path) -> None:
    config, tensors, theirs = random_model(tmp_path)
    repeat_key_heads(config, tensors, lambda heads, times: heads.repeat_interleave(times, dim=0))
    ids = random_ids(config.vocab_size, 100)
    found = teacher_forced(build(replace(config, num_kv_heads=config.num_heads), tensors), ids)
    assert error(found, expected_logits(theirs, ids)) <= BOUND


@pytest.mark.parametrize("layers", [1, 2])
def test_first_layers_equals_a_model_with_only_those_layers(tmp_path: Path, layers: int) -> None:
    config, tensors, theirs = random_model(tmp_path)
    del theirs.model.layers[layers:]
    ids = random_ids(config.vocab_size, 100)
    found = teacher_forced(build(config, tensors).first_layers(layers), ids)
    assert error(found, expected_logits(theirs, ids)) <= BOUND


def test_padding_ids_have_no_logits(tmp_path: Path) -> None:
    config, tensors, theirs = random_model(tmp_path)
    ids = random_ids(80, 50)
    found = teacher_forced(build(config, tensors, columns=80), ids)
    assert found.shape == (50, 80)
    assert error(found, expected_logits(theirs, ids)[:, :80]) <= BOUND


def test_logits_do_not_depend_on_how_a_prompt_is_chunked(tmp_path: Path) -> None:
    config, tensors, _ = random_model(tmp_path, **LLAMA3)
    ours, ids = build(config, tensors), random_ids(config.vocab_size, 150)
    whole = teacher_forced(ours, ids, chunk=150)
    for chunk in (1, 7, 64):
        assert torch.equal(teacher_forced(ours, ids, chunk), whole), chunk


# A real model -----------------------------------------------------------------------------------------------------------------

TEXTS = [
    "The lighthouse keeper counted the ships that passed before dawn, and wrote each name down in a book that nobody else ever read.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    return ordered[middle]\n",
    "To bake bread you need flour, water, salt and yeast. Mix them, wait an hour, fold the dough, and wait again.",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\nA: It takes 3 hours and 25 minutes.",
    "SELECT name, COUNT(*) AS orders FROM customers JOIN purchases USING (id) GROUP BY name HAVING orders > 3;",
    "Les oiseaux migrateurs parcourent des milliers de kilomètres; certains ne se posent presque jamais.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181, 6765",
    "<|im_start|>user\nWhat is a prime number?<|im_end|>\n<|im_start|>assistant\nA prime has exactly two divisors.<|im_end|>\n",
]


def test_smollm2s_logits_equal_transformers() -> None:
    """transformers runs on the tensors loaded by us, which test_gguf.py compares with the gguf package."""
    try:
        path = registry.resolve("smollm2-135m")
    except SsdError as absent:
        pytest.skip(str(absent))
    checkpoint = load_checkpoint(path, torch.float32)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    assert tokenizer is not None
    assert config.tie_embeddings and config.rope_scaling is None
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=config.max_position,
            tie_word_embeddings=True,
        )
    ).eval()
    theirs.load_state_dict(checkpoint.tensors | {"lm_head.weight": checkpoint.tensors["model.embed_tokens.weight"]})
    ours = build(replace(config, max_position=256), checkpoint.tensors)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert error(teacher_forced(ours, ids), expected_logits(theirs, ids)) <= BOUND, text


# Sizes that a device lacks ----------------------------------------------------------------------------------------------------

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 14336}


def sized(**sizes: int) -> ModelConfig:
    return replace(
        ModelConfig(
            vocab_size=100, num_layers=1, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, frequency_factors=None,
            max_position=64, tie_embeddings=True, qk_norm=False, **LLAMA,
        ),
        **sizes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "device,sizes,words",
    [
        ("cuda", {"head_dim": 48}, "head size is 48, and attention on a GPU takes 64, 80, 96, 128, 256"),
        ("cuda", {"num_heads": 34, "num_kv_heads": 2}, "17 query heads of the model share a K/V head"),
        ("cuda", {"hidden_size": 4100}, "hidden_size is 4100"),
        ("cuda", {"intermediate_size": 14332}, "intermediate_size is 14332"),
        ("cpu", {"head_dim": 40}, "head size is 40, and attention takes multiples of 16 up to 256"),
        ("cpu", {"head_dim": 272}, "head size is 272"),
        ("cpu", {"num_heads": 66, "num_kv_heads": 2}, "33 query heads"),
    ],
)
def test_sizes_that_a_device_lacks_are_refused_when_the_model_is_loaded(device: str, sizes: dict[str, int], words: str) -> None:
    check_sizes(sized(), torch.device(device))
    with pytest.raises(SsdError, match=words):
        check_sizes(sized(**sizes), torch.device(device))


def test_the_sizes_are_those_of_the_ops() -> None:
    cuda, cpu = (CSRC / "cuda_ops" / "forward.cpp").read_text(), (CSRC / "cpu" / "simd" / "kernels.h").read_text()
    (sizes,) = re.findall(r"kHeadDims\{([\d, ]+)\}", cuda)
    assert tuple(map(int, sizes.split(","))) == CUDA_HEAD_SIZES
    groups = {"cuda": int(re.findall(r"kMaxGroup = (\d+)", cuda)[0]), "cpu": int(re.findall(r"kMaxGroup = (\d+)", cpu)[0])}
    assert groups == MAX_GROUP
    assert int(re.findall(r"kMaxHeadDim = (\d+)", cpu)[0]) == MAX_CPU_HEAD_SIZE
