"""The memory that an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """What an engine takes, and how it runs. Bytes and seconds.

    rounds: "eager", "paced" or "graphs". target_pass_bytes, draft_pass_bytes: the weights that a pass reads. kv_pages: of kv_page_tokens
    tokens each, for all sequences; kv_bytes: of them in both models' caches, draft_kv_bytes: of that the draft's, with its branches'.
    recorded: how many programs, for rounds of these batch_sizes; recording_seconds, recording_bytes: what that has cost so far.
    """

    mode: str
    device: str
    draft_device: str | None
    dtype: str
    rounds: str
    threads: int
    target_pass_bytes: int
    draft_pass_bytes: int | None
    kv_pages: int
    kv_page_tokens: int
    kv_bytes: int
    draft_kv_bytes: int
    recorded: int
    batch_sizes: Sequence[int]
    recording_seconds: float
    recording_bytes: int
