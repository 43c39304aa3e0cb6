"""Predicted speeds: outcomes that are assumed or recorded, and times that are measured here or follow from a description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssd.decoding.speed_model import expected_tokens
from ssd.decoding.stats import Stats
from ssd.engine import Engine
from ssd.errors import SsdError
from ssd.models import registry
from ssd.models.prompts import Prompt
from ssd.options import EngineOptions, SamplingParams
from ssd.plan.calibration import Calibrated
from ssd.serving.footprint import KVModel, affordable_pages, pages_a_sequence
from ssd.serving.loading import LoadedModels
from ssd.simulate.outcomes import Outcomes, crossing
from ssd.simulate.rounds import Setting, Simulated, Times, simulate

ROUNDS, FEWEST, SEED = 200_000, 20_000, 0  # simulated rounds of one sequence, and the fewest of a large batch


@dataclass(frozen=True)
class Prediction:
    """simulated: with the devices of the plan. apart: tokens/s of a sequence if the draft had a device of its own; None where
    that changes nothing."""

    simulated: Simulated
    apart: float | None

    @property
    def setting(self) -> Setting:
        return self.simulated.setting


def predict(
    settings: Sequence[Setting], outcomes: Outcomes, times: Mapping[Setting, Times], apart: Mapping[Setting, Times]
) -> list[Prediction]:
    """apart: the times with a device for each model, of the settings for which they are known."""
    found = []
    for each in settings:
        rounds = max(FEWEST, ROUNDS // each.batch)
        alone = simulate(each, outcomes, apart[each], rounds, SEED).tokens_per_s if each in apart else None
        rival = times.get(replace(each, mode="sd", budget=0))
        found.append(Prediction(simulate(each, outcomes, times[each], rounds, SEED, rival), alone))
    return found


def fastest_of(predictions: Sequence[Prediction]) -> Setting:
    """The setting with the most tokens/s of all its sequences together."""
    return max(predictions, key=lambda each: each.simulated.tokens_per_s * each.setting.batch).setting


def times_apart(calibrated: Mapping[Setting, Calibrated]) -> dict[Setting, Times]:
    """The times of "ssd" with a device for each model, from what was measured on one.

    A verification and a draft step take as long as in "sd", where one model waits for the other, and the drafting as long as
    with the target idle.
    """
    found = {}
    for setting, own in calibrated.items():
        alone = calibrated.get(replace(setting, mode="sd", budget=0))
        if own.draft_alone_ms is not None and alone is not None:
            draft = alone.times.draft
            branch = max(0.0, own.draft_alone_ms - draft) / setting.lookahead
            found[setting] = replace(own.times, verify=alone.times.verify, draft=draft, branch=branch)
    return found


def sequences_that_fit(
    options: EngineOptions,
    target: KVModel,
    draft: KVModel | None,
    branches: int,
    memory: float,
    draft_memory: float | None,
    tokens: int,
) -> int:
    """How many sequences of so many tokens have room at once. memory, draft_memory: see `affordable_pages`."""
    if memory < 0 or (draft_memory or 0) < 0:
        return 0
    apart = draft_memory is not None
    given = int(draft_memory) if draft_memory is not None else None
    pages = affordable_pages(options, target, draft, branches, int(memory), given, apart, records=True)
    return max(0, pages - 1) // pages_a_sequence(options, tokens)  # one page is the null page


def outcomes_of_draft(draft: str | None, target: str, guesses: int) -> Outcomes | None:
    """The acceptance from the report that `ssd distill` wrote beside the draft, and the assumed hit curve; None without it."""
    named = registry.draft_named(draft, target)
    report = Path(named or "") / "report.json"
    if named is None or not report.is_file():
        return None
    try:
        scores = json.loads(report.read_text(encoding="utf-8"))["held_out"]["all"]["tokens_per_round"]
        tokens = float(scores["4"])
    except (ValueError, KeyError, TypeError):
        raise SsdError(f"{report} is not the report of `ssd distill`; give --acceptance.") from None
    return Outcomes.assumed(guesses, acceptance=crossing(lambda acceptance: expected_tokens(4, acceptance) < tokens))


def measured_outcomes(
    models: LoadedModels, options: EngineOptions, prompts: Sequence[Prompt], params: SamplingParams, lookahead: int, budget: int
) -> Outcomes:
    """From a decode of the prompts in mode "ssd". Raises SsdError."""
    speculation = replace(options.speculation_options, lookahead=lookahead, budget=budget, fallback="neural")
    own = replace(options, mode="ssd", max_batch=8, speculation_options=speculation)
    with Engine.of(models.target, models.draft, own) as engine:
        stats: list[Stats] = [completion.stats for completion in engine.decode(list(prompts), params)]
    return Outcomes.recorded(stats)
