"""Decodes whose spans are recorded, and sums over spans (ssd/runtime/trace.py)."""

from __future__ import annotations

from collections.abc import Sequence

from common.workload import check_complete
from ssd import Completion, Engine, SamplingParams
from ssd.models.prompts import Prompt
from ssd.runtime.trace import Span


def recorded_decode(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[list[Span], list[Completion]]:
    """Decode all prompts in one call, in the NVTX range "profiled"; returns the spans by start, and the completions."""
    engine.trace.record()
    with engine.trace.named("profiled"):
        completions = engine.decode(list(prompts), params)
    check_complete(completions)
    return engine.trace.spans, completions


def named(spans: Sequence[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def overlaps_ms(spans: Sequence[Span], others: Sequence[Span]) -> list[float]:
    """For each span, the ms it shares with the one of `others` at the same index."""
    return [span.overlap_ms(other) for span, other in zip(spans, others, strict=False)]
