"""Weights as int8 with a scale for each output: half the bytes of bfloat16, for drafts. A target is never rounded."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = "_scale"  # behind the name of an int8 weight, in a checkpoint


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: [out, in]. Returns int8 [out, in] and scale [out] float32, with weight ≈ int8 · scale: a row's largest becomes ±127."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """What `quantise` kept of a weight, [out, in] float32."""
    return weight.float() * scale[:, None]
