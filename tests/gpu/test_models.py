"""Forward passes on the GPU against transformers, with random weights: SmolLM2's shape, and Llama-3.1-8B's with few layers.

Neither is exact in bfloat16, so our error against float32 may only slightly exceed transformers' bfloat16 error. Row invariance
holds through a whole model: a prefill gives the same bits as decoding one token at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ops.cases import assert_same_bits
from ssd.kv.cache import PAGE_SIZE, KVCache, Rows
from ssd.models.config import ModelConfig
from ssd.models.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True, "rope_theta": 100000.0,
    },
    "Llama-3.1-8B, 2 layers": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False, "rope_theta": 500000.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def reference_model(request: pytest.FixtureRequest) -> Any:
    """transformers' model in bfloat16, with weights large enough to spread the logits."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[request.param], max_position_embeddings=1024, rms_norm_eps=1e-5)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=(0.5 if "o_proj" in name or "down" in name else 1.5) * weight.shape[1] ** -0.5)
    return with_weights_in(model, torch.bfloat16)


def with_weights_in(model: Any, dtype: torch.dtype) -> Any:
    """Converts the weights in place; the rotary frequencies stay float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def our_model(reference_model: Any) -> Transformer:
    c = reference_model.config
    config = ModelConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_layers=c.num_hidden_layers,
        num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_parameters["rope_theta"], rope_scaling=None, frequency_factors=None,
        max_position=c.max_position_embeddings, tie_embeddings=c.tie_word_embeddings,
    )  # fmt: skip
    tensors = {name: x.detach().clone() for name, x in reference_model.state_dict().items()}
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    return Transformer.from_tensors(config, tensors, torch.bfloat16, torch.device("cuda"), config.max_position)


def logits_of(model: Transformer, ids: Tensor, chunk: int) -> Tensor:
    """The logits after every token, with `chunk` rows per pass and pages in random order."""
    pages = torch.randperm(-(-len(ids) // PAGE_SIZE), generator=torch.Generator().manual_seed(1)).int().cuda()
    cache = KVCache(model.config, len(pages), torch.bfloat16, torch.device("cuda"))
    cache.kv.fill_(float("nan"))
    position = torch.arange(len(ids), dtype=torch.int32, device="cuda")
    slots = pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
    hidden = []
    for rows in (slice(first, first + chunk) for first in range(0, len(ids), chunk)):
        at = position[rows]
        hidden.append(
            model.forward(Rows(ids[rows], at, slots[rows], torch.zeros_like(at), at + 1, pages[None]), cache)
        )  # fmt: skip
    return torch.cat([model.logits(x) for x in hidden])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@torch.inference_mode()
def test_logits_are_as_close_to_float32_as_transformers_bfloat16_logits(reference_model: Any) -> None:
    ids = torch.randint(reference_model.config.vocab_size, (300,), device="cuda", dtype=torch.int32)
    found = logits_of(our_model(reference_model), ids, chunk=128)
    rounded = reference_model(ids[None].long()).logits[0]
    exact = with_weights_in(reference_model, torch.float32)(ids[None].long()).logits[0]
    with_weights_in(reference_model, torch.bfloat16)  # the weights were rounded to bfloat16 before, so this is exact
    assert error(found, exact) <= 1.5 * error(rounded, exact) + 1e-3


@torch.inference_mode()
def test_a_prefill_gives_the_bits_of_decoding_token_by_token(reference_model: Any) -> None:
    model = our_model(reference_model)
    ids = torch.randint(reference_model.config.vocab_size, (150,), device="cuda", dtype=torch.int32)
    together = logits_of(model, ids, chunk=150)
    assert_same_bits(logits_of(model, ids, chunk=1), together)
    assert_same_bits(logits_of(model, ids, chunk=7), together)
