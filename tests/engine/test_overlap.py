"""SSD's draft works while the target verifies: on its own thread, at the same time, and never beyond the end of a round."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.cases import MakeEngine, random_prompt, tokens_of
from ssd import Engine, SamplingParams
from ssd.decoding.ssd import SpeculativeSpeculative

pytestmark = pytest.mark.usefixtures("eager_rounds")

PROMPT, PARAMS = random_prompt(5), SamplingParams(max_new_tokens=24)


def before(monkeypatch: pytest.MonkeyPatch, owner: object, method: str, act: Callable[[], Any]) -> None:
    """Run `act` at the start of every call of a method."""
    original = getattr(owner, method)

    def wrapped(*arguments: Any) -> Any:
        act()
        return original(*arguments)

    monkeypatch.setattr(owner, method, wrapped)


def parts(engine: Engine) -> SpeculativeSpeculative:
    loop = engine.core.loop
    assert isinstance(loop, SpeculativeSpeculative)
    return loop


@pytest.mark.parametrize("threads,draft_threads", [(1, 1), (2, 2)])
def test_verification_and_branching_run_at_the_same_time(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, threads: int, draft_threads: int
) -> None:
    """Each waits until the other has started. If they ran one after the other, the first would time out."""
    ssd = engine("ssd", threads=threads, draft_threads=draft_threads)
    meeting = threading.Barrier(2)
    for owner, method in ((parts(ssd).verifier, "verify"), (parts(ssd).cache, "branch")):
        before(monkeypatch, owner, method, lambda: meeting.wait(timeout=30))
    completion = ssd.decode(PROMPT, PARAMS)
    assert not completion.degraded
    assert len(completion.token_ids) == 24


def test_branches_are_drafted_on_one_thread_other_than_the_callers(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ssd, threads = engine("ssd"), set()
    before(monkeypatch, parts(ssd).cache, "branch", lambda: threads.add(threading.get_ident()))
    ssd.decode(PROMPT, PARAMS)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_draft_is_idle_between_rounds(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up reads the branches' results, whichever of verification and draft ends first."""
    ssd, running = engine("ssd"), threading.Event()
    cache, found = parts(ssd).cache, []
    branch, verified = cache.branch, threading.Event()

    def outlast_the_verification(n: int) -> Any:
        running.set()
        assert verified.wait(timeout=30)
        verified.clear()
        span = branch(n)
        running.clear()
        return span

    verify = parts(ssd).verifier.verify

    def verify_first(n: int) -> Any:
        result = verify(n)
        verified.set()
        return result

    monkeypatch.setattr(cache, "branch", outlast_the_verification)
    monkeypatch.setattr(parts(ssd).verifier, "verify", verify_first)
    before(monkeypatch, cache, "look_up", lambda: found.append(running.is_set()))
    completion = ssd.decode(PROMPT, PARAMS)
    assert len(found) > 3 and not any(found)
    assert tokens_of([completion]) == tokens_of([engine("ar").decode(PROMPT, PARAMS)])


def test_a_draft_that_ends_first_does_not_change_the_verification(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables that it writes are not read by the verification in flight."""
    ssd, drafted = engine("ssd", fallback="neural"), threading.Event()
    cache, branch = parts(ssd).cache, parts(ssd).cache.branch

    def tell(n: int) -> Any:
        span = branch(n)
        drafted.set()
        return span

    def wait() -> None:
        assert drafted.wait(timeout=30)
        drafted.clear()

    monkeypatch.setattr(cache, "branch", tell)
    before(monkeypatch, parts(ssd).verifier, "verify", wait)
    sampled = SamplingParams(temperature=1.0, max_new_tokens=24, seed=5)
    found = [ssd.decode(PROMPT, PARAMS), ssd.decode(PROMPT, sampled)]
    assert not any(completion.degraded for completion in found)
    assert found[0].token_ids == engine("ar").decode(PROMPT, PARAMS).token_ids
    assert found[1].token_ids == engine("sd").decode(PROMPT, sampled).token_ids


def test_each_role_has_its_own_number_of_threads(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ssd, seen = engine("ssd", threads=2, draft_threads=3), {"target": set(), "draft": set()}
    before(monkeypatch, parts(ssd).verifier, "verify", lambda: seen["target"].add(torch.get_num_threads()))
    before(monkeypatch, parts(ssd).cache, "branch", lambda: seen["draft"].add(torch.get_num_threads()))
    ssd.decode(PROMPT, SamplingParams(max_new_tokens=4))
    assert seen == {"target": {2}, "draft": {3}}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_does_not_change_the_callers_number_of_threads(engine: MakeEngine, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - threads)
    try:
        engine("ssd", threads=threads).decode(PROMPT, SamplingParams(max_new_tokens=4))
        assert torch.get_num_threads() == 3 - threads
    finally:
        torch.set_num_threads(before)
