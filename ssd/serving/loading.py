"""The loading of an engine's models, and the mode they run in."""

from __future__ import annotations

from dataclasses import dataclass

from ssd.errors import CheckpointError, SsdError
from ssd.models import registry
from ssd.models.pair import Draft, OnProgress, Target, load_draft, load_target
from ssd.options import EngineOptions
from ssd.runtime.memory import must_fit
from ssd.runtime.placement import Placement, memory_for_kv
from ssd.serving.mode import Mode, resolve_mode


@dataclass(frozen=True)
class LoadedModels:
    """A target, its draft, and the mode they run in.

    draft: None without a draft model. draft_error: the error by which the draft did not load; the engine then runs without it.
    """

    target: Target
    draft: Draft | None
    mode: Mode
    draft_error: Exception | None = None

    @classmethod
    def of(cls, target: Target, draft: Draft | None, options: EngineOptions) -> LoadedModels:
        """From models that are loaded already. Raises SsdError for a mode that they cannot run in."""
        mode = resolve_mode(options, has_draft=draft is not None or options.draft == "ngram")
        return cls(target, draft if mode != "ar" else None, mode)


def load_models(options: EngineOptions, placement: Placement, progress: OnProgress) -> LoadedModels:
    """Load the models that the options name. progress: gets the target's progress.

    Raises SsdError for impossible options, and CheckpointError for a target that cannot be used.
    """
    draft_name = registry.draft_named(options.draft, options.target)
    mode = resolve_mode(options, has_draft=draft_name is not None)

    def positions(context: int) -> int:
        """Number of rotary positions of a model with this context.

        Padding rows and branches after the last tokens exceed it a little.
        """
        return min(options.max_context or context, context) + 2 * (options.speculation_options.lookahead + 1)

    with must_fit(f"the weights of {options.target!r}", "free some, or choose a smaller model"):
        target = load_target(options.target, placement.dtype, placement.target_device, positions, progress, options.weights)
    if mode == "ar" or draft_name in (None, "ngram"):
        return LoadedModels(target, None, mode)
    try:
        draft = load_draft(draft_name, target, positions, placement.draft_device, options.weights)
    except (CheckpointError, MemoryError, RuntimeError) as error:
        return LoadedModels(target, None, mode, draft_error=error)
    if placement.draft_device != placement.target_device:
        try:
            memory_for_kv(options, placement.draft_device)
        except SsdError as error:
            return LoadedModels(target, None, mode, draft_error=error)
    return LoadedModels(target, draft, mode)
