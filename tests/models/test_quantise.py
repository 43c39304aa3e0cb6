"""int8 weights: their rounding, and how an int8 checkpoint loads and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from models.test_transformer import error, random_ids, teacher_forced
from ssd.errors import CheckpointError
from ssd.models.quantise import SCALE, dequantise, quantise
from ssd.models.transformer import Transformer
from ssd.models.weights import load_checkpoint
from ssd.options import WeightsName


def test_a_quantised_weight_is_within_half_a_step() -> None:
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 9)[:, None]
    kept, scale = quantise(weight)
    assert kept.dtype == torch.int8 and scale.dtype == torch.float32
    assert kept.abs().amax(dim=1).tolist() == [127] * 9
    assert bool(((dequantise(kept, scale) - weight).abs() <= 0.5001 * scale[:, None]).all())


def test_a_row_of_zeros_stays_zero() -> None:
    kept, scale = quantise(torch.zeros(2, 3))
    assert dequantise(kept, scale).tolist() == [[0.0] * 3] * 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint whose matrices are int8."""
    tensors: dict[str, Tensor] = {}
    for name, weight in tiny.write_model(tmp_path).items():
        if weight.dim() == 2 and "embed_tokens" not in name:
            tensors[name], tensors[name + SCALE] = quantise(weight)
        else:
            tensors[name] = weight
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "dtype,weights,bound",
    [(torch.float32, "bf16", 1e-5), (torch.float32, "auto", 0.02), (torch.bfloat16, "auto", 0.02)],
    ids=["dequantised", "float32", "bfloat16"],
)
def test_an_int8_checkpoint_runs_like_its_dequantised_weights(
    model: Path, dtype: torch.dtype, weights: WeightsName, bound: float
) -> None:
    checkpoint = load_checkpoint(model, dtype)
    plain = {
        name: dequantise(weight, checkpoint.tensors[name + SCALE]) if weight.dtype == torch.int8 else weight.float()
        for name, weight in checkpoint.tensors.items()
        if not name.endswith(SCALE)
    }
    config, cpu = checkpoint.config, torch.device("cpu")
    expected = Transformer.from_tensors(config, plain, torch.float32, cpu, 128)
    found = Transformer.from_tensors(config, checkpoint.tensors, dtype, cpu, 128, weights=weights)
    ids = random_ids(config.vocab_size, 60)
    assert error(teacher_forced(found, ids), teacher_forced(expected, ids)) <= bound
    if weights == "auto":  # a quarter of the bytes, and the scales
        assert found.weight_bytes() < 0.4 * expected.weight_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_is_rounded_to_int8_on_request(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: weight.to(dtype) for name, weight in tiny.write_model(tmp_path).items()}
    rounded = {
        name: dequantise(*quantise(weight)) if weight.dim() == 2 and "embed_tokens" not in name else weight.float()
        for name, weight in tensors.items()
    }
    config, cpu = load_checkpoint(tmp_path, dtype).config, torch.device("cpu")
    expected = Transformer.from_tensors(config, rounded, torch.float32, cpu, 128)
    found = Transformer.from_tensors(config, tensors, dtype, cpu, 128, weights="int8")
    ids = random_ids(config.vocab_size, 60)
    assert error(teacher_forced(found, ids), teacher_forced(expected, ids)) <= 0.02
    assert found.weight_bytes() < 0.4 * expected.weight_bytes()


@pytest.mark.parametrize("missing", ["model.layers.0.mlp.up_proj.weight_scale", "lm_head.weight_scale"])
def test_a_missing_scale_is_named(model: Path, missing: str) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors.pop(missing)
    tensors[missing.removesuffix(SCALE)] = tensors[missing.removesuffix(SCALE)].float()
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks tensor {missing}"):
        load_checkpoint(model, torch.float32)


def test_a_scale_beside_a_weight_that_is_not_int8_is_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"stores lm_head\.weight as F32; the supported types are I8"):
        load_checkpoint(model, torch.float32)
