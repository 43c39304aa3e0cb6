"""Pages and memory over 300 random requests: no page leaks, no page is written or read by a request that does not own it, and
memory does not grow.

Before every admission and every round, all free K/V pages are filled with a pattern, in both models' caches. Afterwards the
pattern must be unchanged. The pattern is a NaN, so a key read from such a page would change the tokens too. Pages
that are kept for later prompts must not change either. Most pages are held back: requests wait for pages and are preempted.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cases import Models, hits_and_look_ups, random_prompt, tokens_of
from ssd import Completion, Engine, SamplingParams
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.kv.prefix import KeptPage, PrefixCache
from ssd.native import PageAllocator

REQUESTS, WARM_UP = 300, 100
PATTERN = 0x7FC0BEEF  # a NaN that can be recognised
STATM = Path("/proc/self/statm")
OPTIONS: dict[str, Any] = {"dtype": "float32", "threads": 1, "max_context": 128, "fallback": "neural"}


def resident_bytes() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def random_requests() -> tuple[list[list[int]], list[SamplingParams]]:
    dice = random.Random(7)
    prompts, params = [], []
    for i in range(REQUESTS):
        prompts.append(random_prompt(dice.choice((1, 2, 15, 16, 17, dice.randint(3, 70))), seed=i))
        temperature = dice.choice((0.0, 0.0, 0.7, 1.0, 1.5))
        stops = tuple(dice.sample("abcdefghijklmnopqrstuvwxyz", dice.choice((0, 0, 2))))
        params.append(
            SamplingParams(
                temperature=temperature,
                top_p=dice.choice((1.0, 0.9)),
                top_k=dice.choice((0, 20)),
                max_new_tokens=dice.choice((dice.randint(1, 3), dice.randint(4, 58), dice.randint(30, 58))),
                stop=stops,
                seed=i,
            )
        )
    return prompts, params


def kept_pages(engine: Engine) -> list[KeptPage]:
    return [*engine.core.scheduler.pages._kept.values()]


@dataclass
class Canary:
    """Watches the free pages while the engine's loop works."""

    engine: Engine
    overwritten: list[str] = field(default_factory=list)
    checks: int = 0
    kept_checks: int = 0
    waits: int = 0  # rounds during which a request waited although a slot was free

    def __post_init__(self) -> None:
        loop = self.engine.core.loop
        assert isinstance(loop, Speculative | SpeculativeSpeculative) and isinstance(loop.drafter, ModelDrafter)
        self.caches = {"target": loop.verifier.kv_cache, "draft": loop.drafter.kv_cache}
        loop.store = self.around(loop.store)  # type: ignore[method-assign]
        loop.enter = self.around(loop.enter)  # type: ignore[method-assign]
        loop.round = self.around(loop.round)  # type: ignore[method-assign]

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            scheduler = self.engine.core.scheduler
            owned = {int(page) for request in scheduler.admitted.values() for page in request.pages}  # type: ignore[union-attr]
            shared = kept_pages(self.engine)
            kept = torch.tensor([page.page for page in shared], dtype=torch.int64)
            free = torch.tensor(
                sorted(set(range(1, 1 + scheduler.pages.capacity)) - owned - set(kept.tolist())), dtype=torch.int64
            )
            self.waits += bool(scheduler.waiting and scheduler._free_slots)
            views = {name: cache.kv.view(torch.int32) for name, cache in self.caches.items()}
            for view in views.values():
                view[:, :, free] = PATTERN
            before = {name: view[:, :, kept].clone() for name, view in views.items()}
            result = work(*arguments)
            self.engine.core.executor.settle()
            self.kept_checks += len(kept)
            self.checks += 1
            for name, view in views.items():
                spoilt = (view[:, :, free] != PATTERN).flatten(3).any(3).flatten(0, 1).any(0)
                if spoilt.any():
                    self.overwritten.append(f"{name}, pages {free[spoilt].tolist()}")
                for index, page in enumerate(shared):
                    if (page.by_draft or name == "target") and (view[:, :, page.page] != before[name][:, :, index]).any():
                        self.overwritten.append(f"{name}, the kept page {page.page}")
            return result

        return watched


@dataclass
class Run:
    completions: list[Completion]
    canary: Canary
    resident: tuple[int, int]  # after WARM_UP requests and at the end


@pytest.fixture(scope="module")
def run(models: Models) -> Run:
    prompts, params = random_requests()
    with Engine(models.target, models.draft, "ssd", max_batch=8, **OPTIONS) as engine:
        scheduler = engine.core.scheduler
        scheduler.pages = PrefixCache(PageAllocator(1 + scheduler.pages.capacity // 4))
        canary = Canary(engine)
        completions = engine.decode(prompts[:WARM_UP], params[:WARM_UP])
        warm = resident_bytes() if STATM.exists() else 0
        completions += engine.decode(prompts[WARM_UP:], params[WARM_UP:])
        cold = resident_bytes() if STATM.exists() else 0
        return Run(completions, canary, (warm, cold))


def test_no_page_is_leaked(run: Run) -> None:
    pages = run.canary.engine.core.scheduler.pages
    assert pages.available == pages.capacity


def test_no_free_page_is_written(run: Run) -> None:
    assert run.canary.overwritten == []
    assert run.canary.checks > 1.5 * REQUESTS
    assert run.canary.kept_checks > REQUESTS


def test_requests_waited_for_pages_and_were_preempted(run: Run) -> None:
    """Otherwise the run would not have been short of pages."""
    scheduler = run.canary.engine.core.scheduler
    assert run.canary.waits > 20
    assert scheduler.preemptions > 5
    assert scheduler.pages.evictions > REQUESTS


def test_no_sequence_is_changed_by_its_neighbours(run: Run, models: Models) -> None:
    """Each has the tokens that it has alone: greedy ones the target's, sampled ones those of plain speculative decoding."""
    prompts, params = random_requests()
    for mode, draft, sampled in (("ar", None, False), ("sd", models.draft, True)):
        chosen = [i for i in range(REQUESTS) if (params[i].temperature > 0) == sampled]
        with Engine(models.target, draft, mode, max_batch=1, **OPTIONS) as alone:
            expected = alone.decode([prompts[i] for i in chosen], [params[i] for i in chosen])
        found = [run.completions[i] for i in chosen]
        assert tokens_of(found) == tokens_of(expected)
        assert [c.text for c in found] == [c.text for c in expected]


def test_the_run_had_every_finish_reason_hits_and_misses(run: Run) -> None:
    assert {c.finish_reason for c in run.completions} == {"eos", "length", "stop"}
    assert {c.stats.mode for c in run.completions} == {"ssd"}
    assert not any(c.degraded for c in run.completions)
    hits, look_ups = hits_and_look_ups(run.completions)
    assert 100 < hits < look_ups - 100


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_resident_memory_does_not_grow(run: Run) -> None:
    warm, end = run.resident
    assert abs(end - warm) <= 0.01 * warm


def test_a_tree_writes_and_reads_no_page_of_another_sequence(models: Models) -> None:
    """A tree's nodes are stored after the sequence's last token, possibly beyond the end of the sequence."""
    prompts, params = (each[:WARM_UP] for each in random_requests())
    tree = {"tree": (3, 2, 2)}
    with Engine(models.target, models.draft, "sd", max_batch=8, **tree, **OPTIONS) as engine:
        canary = Canary(engine)
        found = engine.decode(prompts, params)
        assert engine.core.scheduler.pages.available == engine.core.scheduler.pages.capacity
    assert canary.overwritten == []
    with Engine(models.target, models.draft, "sd", max_batch=1, **tree, **OPTIONS) as alone:
        assert tokens_of(found) == tokens_of(alone.decode(prompts, params))


@pytest.mark.parametrize("owner", ["target", "draft"])
def test_the_canary_detects_a_write_to_a_free_page(models: Models, owner: str) -> None:
    with Engine(models.target, models.draft, "ssd", max_batch=2, **OPTIONS) as engine:
        cache = engine._assembly.kv_cache if owner == "target" else engine.core.loop.drafter.kv_cache  # type: ignore[union-attr]
        round = engine.core.loop.round

        def stray(n: int) -> Any:
            cache.kv[1, 0, engine.core.scheduler.pages.capacity, 3] = 0.0
            return round(n)

        engine.core.loop.round = stray  # type: ignore[method-assign]
        canary = Canary(engine)
        engine.decode([5, 6], SamplingParams(max_new_tokens=10))
    assert {seen.split(",")[0] for seen in canary.overwritten} == {owner}
