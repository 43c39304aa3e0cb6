"""A checkpoint's configuration: read from both formats, scaled like transformers, refused if the decoder lacks a feature."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ssd.errors import CheckpointError
from ssd.models.config import ModelConfig, RopeScaling

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a"] * 100,
    "tokenizer.ggml.eos_token_id": 7,
}


def write(path: Path, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **changes}))
    return path


def test_every_number_is_read_from_a_directorys_config(tmp_path: Path) -> None:
    write(tmp_path, rms_norm_eps=1e-4, rope_theta=5e5, eos_token_id=9, tie_word_embeddings=True, head_dim=32)
    assert ModelConfig.from_directory(tmp_path) == ModelConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32,
        rms_norm_eps=1e-4, rope_theta=5e5, rope_scaling=None, frequency_factors=None, max_position=512, tie_embeddings=True,
        eos_token_ids=(9,),
    )  # fmt: skip


def test_generation_config_adds_end_of_text_ids(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 11]}))
    assert ModelConfig.from_directory(tmp_path).eos_token_ids == (9, 11)


FAMILIES = [
    (LlamaConfig(**SIZES), (False, False, False, False)),
    (LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), (True, True, True, False)),
    (MistralConfig(**SIZES, sliding_window=None), (False, False, False, False)),
    (Qwen2Config(**SIZES), (True, False, False, False)),
    (Qwen3Config(**SIZES), (False, False, False, True)),
]


@pytest.mark.parametrize("config,switches", FAMILIES)
def test_a_family_sets_its_switches(tmp_path: Path, config: Any, switches: tuple[bool, ...]) -> None:
    config.save_pretrained(tmp_path)
    ours = ModelConfig.from_directory(tmp_path)
    assert (ours.attention_bias, ours.attention_output_bias, ours.mlp_bias, ours.qk_norm) == switches
    assert ours.head_dim == (128 if config.model_type == "qwen3" else 16)


@given(
    factor=st.floats(1.0, 32.0),
    low=st.floats(0.5, 2.0),
    gap=st.floats(0.5, 6.0),
    original=st.integers(16, 8192),
    theta=st.floats(1e3, 1e6),
    head_dim=st.sampled_from([16, 64, 128]),
)
def test_llama3_scaling_equals_transformers(
    factor: float, low: float, gap: float, original: int, theta: float, head_dim: int
) -> None:
    scaling = {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + gap,
        "original_max_position_embeddings": original,
    }
    theirs = LlamaConfig(
        **(SIZES | {"max_position_embeddings": 131072}),
        head_dim=head_dim,
        rope_parameters={"rope_type": "llama3", "rope_theta": theta, **scaling},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    ours = replace(
        ModelConfig.from_gguf_metadata(METADATA, ()),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=RopeScaling(factor, low, low + gap, original),
    )
    torch.testing.assert_close(ours.rope_frequencies().float(), expected, rtol=2e-5, atol=0)


def test_llama3_scaling_is_read_from_the_older_key_too(tmp_path: Path) -> None:
    write(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    config = ModelConfig.from_directory(tmp_path)
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    assert config.rope_theta == 5e5


def test_frequency_factors_divide_the_frequencies() -> None:
    plain = ModelConfig.from_gguf_metadata(METADATA, ())
    factors = (1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0)
    scaled = ModelConfig.from_gguf_metadata(METADATA, (), factors)
    torch.testing.assert_close(scaled.rope_frequencies() * torch.tensor(factors, dtype=torch.float64), plain.rope_frequencies())


def test_gguf_metadata_gives_the_same_configuration_as_a_directory(tmp_path: Path) -> None:
    write(tmp_path, rms_norm_eps=1e-5, rope_theta=1e4, eos_token_id=7)
    assert ModelConfig.from_gguf_metadata(METADATA, ("output.weight",)) == ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"model_type": "gpt2"}, "gpt2.*llama, mistral, qwen2, qwen3"),
        ({"model_type": "mistral", "sliding_window": 128}, "sliding window of 128"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'.*default and llama3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "'linear'.*default and llama3"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'.*default and llama3"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor 1.0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_act": "gelu"}, "'gelu'.*silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key-value heads"),
        ({"head_dim": 15}, "even"),
        ({"num_hidden_layers": 0}, "num_layers 0"),
    ],
)
def test_a_directory_with_an_unsupported_feature_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as refusal:
        ModelConfig.from_directory(write(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"general.architecture": "gemma"}, "gemma.*llama, qwen2, qwen3"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type to 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count to 8"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length to 8"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window to 64"),
        ({"llama.expert_count": 8}, "llama.expert_count to 8"),
        ({"llama.attention.head_count_kv": [1, 2]}, r"one number as llama.attention.head_count_kv, and has \[1, 2\]"),
        ({"llama.block_count": None}, "one number as llama.block_count"),
    ],
)
def test_gguf_metadata_with_an_unsupported_feature_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        ModelConfig.from_gguf_metadata(METADATA | changes, ())


def test_a_wrong_number_of_frequency_factors_is_refused() -> None:
    with pytest.raises(CheckpointError, match="3 factors, but head size 16 needs 8"):
        ModelConfig.from_gguf_metadata(METADATA, (), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_config_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as refusal:
        ModelConfig.from_directory(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "config",
    [config for config, _ in FAMILIES]
    + [LlamaConfig(**SIZES, rope_parameters=LLAMA3 | {"rope_type": "llama3", "rope_theta": 1e4})],
)
def test_a_configuration_converted_to_transformers_and_back_is_the_same(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    expected = ModelConfig.from_directory(tmp_path)
    expected.to_transformers().save_pretrained(tmp_path)
    assert ModelConfig.from_directory(tmp_path) == expected
