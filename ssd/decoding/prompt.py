"""The rows of a prompt, in chunks of a fixed size: its K/V then depends on nothing else in the batch."""

from __future__ import annotations

import torch

from ssd.decoding.state import SequenceState
from ssd.kv.cache import Rows

PREFILL_CHUNK = 256  # prompt rows a forward pass: they share one read of the weights


def prompt_rows(state: SequenceState, length: int) -> list[Rows]:
    """The rows of one slot's prompt of that length, chunk by chunk."""
    starts = range(0, length, PREFILL_CHUNK)
    position = torch.arange(0, length, PREFILL_CHUNK, dtype=torch.int32, device=state.length.device)
    chunks = [state.tokens[:, first : min(length, first + PREFILL_CHUNK)] for first in starts]
    return [state.rows(chunk, position[i : i + 1]) for i, chunk in enumerate(chunks)]
