"""Helpers of the engine's tests: models, prompts, and figures pooled over completions. Imported as `engine.cases`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import tiny
from fake_device import FakeDevice
from ssd import Completion, Engine, SamplingParams

VOCABULARY = tiny.vocabulary_of_bytes()
PADDED = 288  # rows of the models' heads; the rows after the vocabulary are padding


@dataclass(frozen=True)
class Models:
    """The models' paths."""

    target: str
    draft: str  # the target with noise on its weights
    trimmed: str  # the same, with three quarters of the vocabulary
    stranger: str  # a draft with two tokens of the vocabulary swapped

    def draft_named(self, name: str) -> str:
        """The path in this field; any other name, such as "self:2", is returned unchanged."""
        return str(getattr(self, name, name))


MakeEngine = Callable[..., Engine]
MakeCaptured = Callable[..., tuple[Engine, FakeDevice]]

FIXED = {"fan_out": "uniform", "fallback": "neural"}  # options whose rounds do not depend on when the host learns


def random_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, len(VOCABULARY), (length,), generator=generator).tolist()


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    return [random_prompt(length, seed + i) for i, length in enumerate(lengths)]


def autoregressive_tokens(
    models: Models, prompts: Sequence[list[int]], params: Sequence[SamplingParams], weights: str = "auto"
) -> dict[str, list[list[int]]]:
    """The tokens that greedy decoding must give, by dtype, decoded one sequence at a time on one thread."""
    tokens = {}
    for dtype in ("float32", "bfloat16"):
        with Engine(models.target, None, "ar", dtype=dtype, max_batch=1, threads=1, weights=weights) as engine:
            tokens[dtype] = tokens_of(engine.decode(prompts, params))
    return tokens


def as_asked(completions: list[Completion], mode: str) -> list[Completion]:
    """The completions, after checking that they were decoded in this mode and that no draft was lost."""
    assert {completion.stats.mode for completion in completions} == {mode}
    assert not any(completion.degraded for completion in completions)
    return completions


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def hits_and_look_ups(completions: Sequence[Completion], least_k: int = 0) -> tuple[int, int]:
    """Hits and look-ups of outcomes with at least `least_k` accepted tokens."""
    counts = [n for completion in completions for k, n in completion.stats.hits_per_k.items() if k >= least_k]
    return sum(hits for hits, _ in counts), sum(look_ups for _, look_ups in counts)


def accepted_in_all(completion: Completion) -> int:
    return round(completion.stats.accepted_per_round * completion.stats.rounds)


def was_cut_in_a_round(completion: Completion) -> bool:
    """Whether its last round decided more tokens than the completion has: the bonus token was cut."""
    return completion.stats.rounds + accepted_in_all(completion) > len(completion.token_ids) - 1
