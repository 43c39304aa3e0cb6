"""Shapes of published models by name, for plans and profiling without their files."""

from __future__ import annotations

from ssd.models.config import ModelConfig


def model_shape(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, dim: int, tied: bool, qk_norm: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, frequency_factors=None,
        max_position=4096, tie_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip


SHAPES = {
    "Llama-3.1-70B": model_shape(128256, 8192, 28672, 80, 64, 8, 128, tied=False, qk_norm=False),
    "Llama-3.1-8B": model_shape(128256, 4096, 14336, 32, 32, 8, 128, tied=False, qk_norm=False),
    "Llama-3.2-1B": model_shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True, qk_norm=False),
    "Qwen3-32B": model_shape(151936, 5120, 25600, 64, 64, 8, 128, tied=False, qk_norm=True),
    "Qwen3-0.6B": model_shape(151936, 1024, 3072, 28, 16, 8, 128, tied=True, qk_norm=True),
}
