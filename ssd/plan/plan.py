"""A plan: the memory and the speed to expect of a target and its draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ssd.bench.text import size
from ssd.engine import Engine
from ssd.errors import SsdError, one_line
from ssd.models.pair import OnProgress
from ssd.models.registry import draft_named
from ssd.options import EngineOptions
from ssd.plan.calibration import calibrate, engine_options
from ssd.plan.devices import Device, assumptions, times
from ssd.plan.models import PlannedModel, planned_draft
from ssd.plan.prediction import Prediction, fastest_of, predict, sequences_that_fit, times_apart
from ssd.runtime.placement import memory_for_kv, place
from ssd.serving.loading import LoadedModels, load_models
from ssd.simulate.outcomes import Outcomes
from ssd.simulate.rounds import Setting


@dataclass
class Plan:
    """memory: a name and a sentence each. room: how many sequences fit, by batch. source: where the outcomes come from.
    footprint: of an engine with the fastest setting; None where none was made."""

    memory: list[tuple[str, str]]
    room: dict[int, int]
    predictions: list[Prediction]
    outcomes: Outcomes
    source: str
    assumptions: list[str]
    footprint: dict[str, Any] | None = None

    @property
    def fastest(self) -> Setting | None:
        """The setting with the most tokens/s of those that fit."""
        fitting = [each for each in self.predictions if self.room.get(each.setting.batch, 0) >= each.setting.batch]
        return fastest_of(fitting) if fitting else None


def load_pair(options: EngineOptions, settings: Sequence[Setting], on_load: OnProgress) -> LoadedModels:
    """The models for the largest of these settings. on_load: called with the progress. Raises SsdError."""
    _draft_name(options)
    speculation = replace(options.speculation_options, lookahead=max(each.lookahead for each in settings))
    widest = replace(options, mode="ssd", speculation_options=speculation)
    models = load_models(widest, place(widest), on_load)
    if models.draft_error is not None:
        raise SsdError(f"the draft cannot be used ({one_line(models.draft_error)}); nothing was measured.")
    return models


def plan_here(
    models: LoadedModels,
    options: EngineOptions,
    context: int,
    settings: Sequence[Setting],
    outcomes: Outcomes,
    source: str,
    on_run: Callable[[int, int], None],
) -> Plan:
    """On this machine, whose passes are timed. models: from `load_pair`. context: tokens of a sequence, for memory. on_run:
    called with the progress of timing. Raises SsdError."""
    assert models.draft is not None
    options = replace(options, mode="ssd")
    placement = place(options)
    calibrated = calibrate(models, options, settings, on_run)
    own_times = {each: own.times for each, own in calibrated.items()}
    predictions = predict(settings, outcomes, own_times, times_apart(calibrated))
    target, draft = models.target.model, models.draft.model
    elsewhere = placement.draft_device != placement.target_device
    memory = memory_for_kv(options, placement.target_device)
    draft_memory = memory_for_kv(options, placement.draft_device) if elsewhere else None
    tokens = min(context, models.target.context)
    room = {
        each.batch: sequences_that_fit(engine_options(options, each), target, draft, each.budget, memory, draft_memory, tokens)
        for each in settings
    }
    with Engine.of(models.target, models.draft, engine_options(options, fastest_of(predictions))) as engine:
        footprint = asdict(engine.footprint)
    sizes = [
        ("target", f"a pass reads {size(target.weight_bytes())} of weights"),
        ("draft", f"a pass reads {size(draft.weight_bytes())} of weights"),
        ("room for K/V", size(memory) + (f", and {size(draft_memory)} on the draft's device" if draft_memory else "")),
    ]
    assumed = [
        f"Times are measured here, with random prompts; {tokens} tokens a sequence count for memory only.",
        "A draft on a device of its own takes none of the target's bandwidth and cores; the exchange is as here.",
    ]
    return Plan(sizes, room, predictions, outcomes, source, assumed, footprint)


def plan_described(
    options: EngineOptions,
    on: Device,
    draft_on: Device | None,
    link: float,
    context: int,
    settings: Sequence[Setting],
    outcomes: Outcomes,
    source: str,
) -> Plan:
    """On devices that are described. draft_on: the draft's own; None if it shares the target's. link: µs of a message between
    two devices. context: tokens of a sequence. Raises SsdError."""
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    target = PlannedModel.named(options.target, dtype, options.weights)
    draft = planned_draft(_draft_name(options), target, options.weights)
    second = draft_on or replace(on, count=1)
    own = {each: times(each, target, draft, on, draft_on, context, link / 1e6) for each in settings}
    apart = {each: times(each, target, draft, on, second, context, link / 1e6) for each in settings if each.mode == "ssd"}
    used = options.gpu_memory_utilization
    memory = used * on.memory * on.count - target.stored_bytes - (0 if draft_on else draft.stored_bytes)
    draft_memory = used * draft_on.memory * draft_on.count - draft.stored_bytes if draft_on else None
    room = {
        each.batch: sequences_that_fit(engine_options(options, each), target, draft, each.budget, memory, draft_memory, context)
        for each in settings
    }
    sizes = [
        (
            title,
            f"{size(each.stored_bytes)} of weights, of which a pass reads {size(each.pass_bytes)}; K/V "
            f"{each.kv_bytes_a_token / 1e6:.2f} MB a token; on {place.count} × {place.name} with {size(place.memory)} each",
        )
        for title, each, place in (("target", target, on), ("draft", draft, draft_on or on))
    ]
    sizes.append(("room for K/V", _room(memory)))
    if draft_memory is not None:
        sizes.append(("the draft's", _room(draft_memory)))
    predictions = predict(settings, outcomes, own, {} if draft_on else apart)
    return Plan(sizes, room, predictions, outcomes, source, assumptions(on, draft_on, link, context, used))


def _draft_name(options: EngineOptions) -> str:
    name = draft_named(options.draft, options.target)
    if name is None or name == "ngram":
        raise SsdError(f"{options.target!r} has no draft model; name one with --draft, for example 'self:2'.")
    return name


def _room(memory: float) -> str:
    return size(memory) if memory > 0 else f"none: {size(-memory)} are missing"
