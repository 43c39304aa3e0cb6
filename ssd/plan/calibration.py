"""The times of rounds, measured on this machine with random prompts. Outcomes of such prompts mean nothing; times do."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

import torch

from ssd.bench.statistics import hit_rate, middle, rounds_s
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.decoding.stats import Stats
from ssd.engine import Engine
from ssd.options import EngineOptions, SamplingParams
from ssd.serving.loading import LoadedModels
from ssd.simulate.rounds import Setting, Times

PROMPT, TOKENS, RUNS = 192, 32, 4  # tokens of a prompt and of an output; decodes of each setting
WARM_UP = 8  # tokens of a first decode


@dataclass(frozen=True)
class Calibrated:
    """times: with both models at work, as in a decode. draft_alone_ms: a round's drafting in mode "ssd" with the target idle;
    None in other modes."""

    times: Times
    draft_alone_ms: float | None


def calibrate(
    models: LoadedModels, options: EngineOptions, settings: Sequence[Setting], on_run: Callable[[int, int], None]
) -> dict[Setting, Calibrated]:
    """Decode with every setting in turn. models: for the largest lookahead. on_run: called with the number of runs, and of how
    many. Raises SsdError."""
    found: dict[Setting, list[list[Stats]]] = {each: [] for each in settings}
    with ExitStack() as stack:
        engines = {each: stack.enter_context(_engine(models, options, each)) for each in settings}
        vocabulary = models.target.model.vocab_size
        done, runs = 0, (RUNS + 1) * len(settings)
        for run in range(RUNS + 1):
            for setting, engine in engines.items():
                draw = random.Random(run)
                prompts = [[draw.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(setting.batch)]
                params = SamplingParams(max_new_tokens=TOKENS if run else WARM_UP, ignore_eos=True)
                stats = [completion.stats for completion in engine.decode(prompts, params)]
                if run:
                    found[setting].append(stats)
                done += 1
                on_run(done, runs)
        alone = {each: draft_alone_ms(engine, each.batch) for each, engine in engines.items() if each.mode == "ssd"}
    return {
        setting: Calibrated(_median_times([times_of(setting, stats) for stats in runs_of]), alone.get(setting))
        for setting, runs_of in found.items()
    }


def times_of(setting: Setting, stats: Sequence[Stats]) -> Times:
    """From sequences that ran together. The exchange is what the passes of a mean round leave over."""
    verify, drafting, fallback = (
        middle(getattr(each, name) for each in stats) or 0.0 for name in ("t_verify_ms", "t_draft_ms", "t_fallback_ms")
    )
    round_ms = 1e3 * sum(map(rounds_s, stats)) / sum(each.rounds for each in stats)
    if setting.mode == "ar":
        return Times(verify, verify, 0.0, 0.0, max(0.0, round_ms - verify))
    if setting.mode == "sd":
        return Times(verify, verify, drafting / setting.lookahead, 0.0, max(0.0, round_ms - verify - drafting))
    draft = fallback / setting.lookahead
    any_miss = 1 - hit_rate(stats) ** setting.batch
    exchange = round_ms - max(verify, drafting) - any_miss * fallback
    return Times(verify, verify, draft, (drafting - draft) / setting.lookahead, max(0.0, exchange))


def _median_times(found: Sequence[Times]) -> Times:
    return Times(
        *(median(getattr(each, name) for each in found) for name in ("verify", "token", "draft", "branch", "exchange"))
    )


def engine_options(options: EngineOptions, setting: Setting) -> EngineOptions:
    """The options of an engine with this setting."""
    speculation = replace(options.speculation_options, tree=None, fan_out="measured", fallback="neural")
    if setting.lookahead:
        speculation = replace(speculation, lookahead=setting.lookahead)
    if setting.budget:
        speculation = replace(speculation, budget=setting.budget)
    own = replace(options, mode=setting.mode, max_batch=setting.batch, speculation_options=speculation)
    return own.autoregressive() if setting.mode == "ar" else own


def _engine(models: LoadedModels, options: EngineOptions, setting: Setting) -> Engine:
    own = replace(engine_options(options, setting), max_context=min(models.target.context, PROMPT + TOKENS + WARM_UP))
    return Engine.of(models.target, models.draft if setting.mode != "ar" else None, own)


def draft_alone_ms(engine: Engine, batch: int, runs: int = 20) -> float:
    """A round's drafting while the target is idle. The sequences have ended, so they attend to almost no keys."""
    loop, executor = engine.core.loop, engine.core.executor
    assert isinstance(loop, SpeculativeSpeculative)
    n, sampled = executor.batch(batch), loop.cache.tables.speculation.sampled
    times = []
    with torch.inference_mode():
        for _ in range(runs):
            run = executor.start("speculate", lambda: loop.cache.branch(n), n, sampled)
            run.wait()
            times.append(run.span.ms)
    return median(times)
