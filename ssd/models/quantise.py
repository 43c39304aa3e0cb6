"""Weights as int8 with one scale per output: half the bytes of bfloat16. A target is rounded only if weights="int8" asks."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = "_scale"  # in a checkpoint, the name of an int8 weight followed by this suffix is its scale


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight, [out, in], to int8 [out, in] and scale [out] float32: weight ≈ int8 · scale. A row's largest becomes
    ±127."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight that the results of `quantise` stand for, [out, in] float32."""
    return weight.float() * scale[:, None]
