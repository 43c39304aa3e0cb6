"""The shape of a decoder of the Llama family, read from a Hugging Face directory or from a GGUF file's metadata.

Llama, Mistral without a sliding window, Qwen2 and Qwen3 are one decoder with a few switches. Any other rope scaling or
activation is refused here, so that later code never has to check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssd.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BORROWED = "ssd_embeddings"  # the key in config.json that marks a draft without embeddings of its own
GGUF_FAMILIES = ("llama", "qwen2", "qwen3")  # GGUF files call Mistral "llama"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's stretching of the low rope frequencies ("The Llama 3 Herd of Models", section 3.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.high_freq_factor <= self.low_freq_factor:
            raise CheckpointError(
                f"the checkpoint's llama3 rope scaling has factor {self.factor}, low_freq_factor {self.low_freq_factor} and "
                f"high_freq_factor {self.high_freq_factor}, but factor must be above 0 and high_freq_factor above "
                "low_freq_factor."
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes and switches of a decoder.

    attention_bias: the q, k and v projections have a bias. attention_output_bias: the output projection has one too (Llama's
    own attention_bias sets both; Qwen2 has only the first). qk_norm: an RMSNorm over each head of q and k before rope (Qwen3).
    frequency_factors: [head_dim / 2], divisors of the rope frequencies, from a GGUF file's rope_freqs.weight.
    eos_token_ids: every id that ends a text. borrows_embeddings: this is a draft that uses its target's embeddings (and its
    output rows, if they are tied). Raises CheckpointError if the numbers contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    frequency_factors: tuple[float, ...] | None
    max_position: int
    tie_embeddings: bool
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    borrows_embeddings: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "max_position"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"the checkpoint says {name} {getattr(self, name)}, but it must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"the checkpoint has {self.num_heads} heads over {self.num_kv_heads} key-value heads, but the number of heads must "
                "be a multiple of the number of key-value heads."
            )
        if self.head_dim % 2:
            raise CheckpointError(f"the checkpoint has head size {self.head_dim}, but rope needs an even head size.")
        if self.frequency_factors is not None and len(self.frequency_factors) != self.head_dim // 2:
            raise CheckpointError(
                f"rope_freqs.weight has {len(self.frequency_factors)} factors, but head size {self.head_dim} "
                f"needs {self.head_dim // 2}."
            )

    @classmethod
    def from_directory(cls, path: Path) -> ModelConfig:
        """Read config.json, and eos_token_id from generation_config.json if that file exists.

        Raises CheckpointError for a missing or unusable config.json and for a feature that the decoder lacks.
        """
        raw = _read_json(path / "config.json")
        if raw is None:
            raise CheckpointError(
                f"{path} has no config.json; give a directory with a Hugging Face checkpoint, or a .gguf file."
            )
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(f"{path} has the architecture {family!r}; the supported ones are {', '.join(FAMILIES)}.")
        if raw.get("quantization_config"):
            raise CheckpointError(
                f"{path} holds quantised safetensors, which are not supported; use the original, or a GGUF file."
            )

        from transformers import AutoConfig  # imported here: it takes half a second, and a GGUF file does not need it

        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers raises its validators' own types
            raise CheckpointError(f"{path / 'config.json'} cannot be used: {one_line(error)}.") from error
        if config.hidden_act != "silu":
            raise CheckpointError(f"{path} uses the activation {config.hidden_act!r}; the only supported one is silu.")
        if getattr(config, "sliding_window", None) is not None:
            raise CheckpointError(
                f"{path} attends within a sliding window of {config.sliding_window}, which is not supported; "
                "use a checkpoint whose sliding_window is null."
            )
        attention_bias = family == "qwen2" or bool(getattr(config, "attention_bias", False))
        generation = _read_json(path / "generation_config.json") or {}
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=float(config.rope_parameters["rope_theta"]),
            rope_scaling=_rope_scaling(path, config.rope_parameters, config.max_position_embeddings),
            frequency_factors=None,
            max_position=config.max_position_embeddings,
            tie_embeddings=bool(config.tie_word_embeddings),
            attention_bias=attention_bias,
            attention_output_bias=attention_bias and family != "qwen2",
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=family == "qwen3",
            eos_token_ids=_ids(generation.get("eos_token_id", config.eos_token_id)),
            borrows_embeddings=raw.get(BORROWED) == "target",
        )

    @classmethod
    def from_gguf_metadata(
        cls,
        metadata: Mapping[str, Any],
        tensor_names: Collection[str],
        frequency_factors: tuple[float, ...] | None = None,
    ) -> ModelConfig:
        """Read the "<architecture>.*" keys of a GGUF file (llama.cpp's names).

        tensor_names: names as the GGUF file spells them. They tell which biases exist, and a missing output.weight means that
        the embeddings are tied. Raises CheckpointError for a missing key and for a feature that the decoder lacks.
        """
        family = metadata.get("general.architecture")
        if family not in GGUF_FAMILIES:
            raise CheckpointError(
                f"the GGUF file has the architecture {family!r}; the supported ones are {', '.join(GGUF_FAMILIES)}."
            )

        def number(key: str, default: float | None = None) -> Any:
            value = metadata.get(f"{family}.{key}", default)
            if not isinstance(value, int | float):
                raise CheckpointError(f"the GGUF file must have one number as {family}.{key}, and has {value!r}.")
            return value

        heads, hidden = number("attention.head_count"), number("embedding_length")
        head_dim = number("attention.key_length", hidden // heads if heads else 0)
        unsupported = {
            "rope.scaling.type": metadata.get(f"{family}.rope.scaling.type", "none") != "none",
            "rope.dimension_count": number("rope.dimension_count", head_dim) != head_dim,
            "attention.value_length": number("attention.value_length", head_dim) != head_dim,
            "attention.sliding_window": number("attention.sliding_window", 0) != 0,
            "expert_count": number("expert_count", 0) != 0,
        }
        for key, refused in unsupported.items():
            if refused:
                raise CheckpointError(
                    f"the GGUF file sets {family}.{key} to {metadata[f'{family}.{key}']!r}, which is not supported."
                )
        ends = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        return cls(
            vocab_size=number("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
            hidden_size=hidden,
            intermediate_size=number("feed_forward_length"),
            num_layers=number("block_count"),
            num_heads=heads,
            num_kv_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
            rope_theta=number("rope.freq_base", 10000.0),
            rope_scaling=None,
            frequency_factors=frequency_factors,
            max_position=number("context_length"),
            tie_embeddings="output.weight" not in tensor_names,
            attention_bias="blk.0.attn_q.bias" in tensor_names,
            attention_output_bias="blk.0.attn_output.bias" in tensor_names,
            mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
            qk_norm=family == "qwen3",
            eos_token_ids=tuple(dict.fromkeys(metadata[key] for key in ends if key in metadata)),
        )

    def to_transformers(self, **changes: Any) -> PreTrainedConfig:
        """The same model as a transformers configuration, for a config.json or for training. changes: config.json keys to set.

        A transformers configuration has no field for `frequency_factors`. If you build a model from it, set the model's rope
        frequencies to `rope_frequencies()` yourself.
        """
        from transformers import LlamaConfig, Qwen2Config, Qwen3Config

        family: type[PreTrainedConfig] = LlamaConfig
        if self.qk_norm:
            family = Qwen3Config
        elif self.attention_bias and not self.attention_output_bias:
            family = Qwen2Config
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            rope |= {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_position,
            }
        keys: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": None,
            "eos_token_id": list(self.eos_token_ids) or None,
        }
        if family is not Qwen2Config:
            keys["attention_bias"] = self.attention_bias
        if family is LlamaConfig:
            keys["mlp_bias"] = self.mlp_bias
        return family(**keys | changes)

    def rope_frequencies(self) -> Tensor:
        """Radians per position for each pair of head dimensions: [head_dim / 2], float64, scaled as the checkpoint asks.

        Llama 3 stretches a wavelength above original_max_position / low_freq_factor by factor, keeps one below
        original_max_position / high_freq_factor, and interpolates linearly between the two.
        """
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        frequencies = self.rope_theta**-exponents
        if self.frequency_factors is not None:
            frequencies = frequencies / torch.tensor(self.frequency_factors, dtype=torch.float64)
        if self.rope_scaling is not None:
            scaling = self.rope_scaling
            turns = scaling.original_max_position * frequencies / (2 * math.pi)  # full turns within the original context
            kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            kept = kept.clamp(0.0, 1.0)
            frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
        return frequencies


def _rope_scaling(path: Path, parameters: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    kind = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(
            f"{path} applies rope to only a part of each head (partial_rotary_factor), which is not supported."
        )
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"{path} has the rope type {kind!r}; the supported types are default and llama3.")
    return RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position=int(parameters.get("original_max_position_embeddings") or max_position),
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file, or None if there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold one JSON object.")
    return value
