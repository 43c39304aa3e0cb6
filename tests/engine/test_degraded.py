"""A failed draft loses no token: every text is complete and equals the target's own, and there is one warning."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.cases import MakeEngine, Models, random_prompts, tokens_of
from ssd import Completion, Engine, SamplingParams, ops
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative

pytestmark = pytest.mark.usefixtures("eager_rounds")

PROMPTS = random_prompts((3, 20, 1, 9, 40))  # more than the engine's three slots, so some begin while others are running
PARAMS = [SamplingParams(max_new_tokens=n) for n in (30, 12, 25, 18, 9)]


def break_draft(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, phase: str, call: int, error: type[BaseException] = RuntimeError
) -> list[int]:
    """Make the draft model raise in its call-th forward pass within a phase: "store" (a prompt), "draft", "look_up" or
    "branch".

    Returns a list to which the raising thread's id is added.
    """
    assert isinstance(engine.core.loop, (Speculative, SpeculativeSpeculative))
    loop, where, calls, raised = engine.core.loop, threading.local(), [0], []

    def within(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            where.phase = method.__name__
            try:
                return method(*arguments)
            finally:
                where.phase = None

        return run

    owners = {"store": loop.drafter, "draft": loop.drafter}
    if isinstance(loop, SpeculativeSpeculative):
        owners |= {"look_up": loop.cache, "branch": loop.cache}
    assert phase in owners
    for name, owner in owners.items():
        monkeypatch.setattr(owner, name, within(getattr(owner, name)))
    model = loop.drafter.model
    forward = model.forward

    def fail(*arguments: Any) -> Any:
        if where.phase == phase:
            calls[0] += 1
            if calls[0] == call:
                raised.append(threading.get_ident())
                raise error("out of luck")
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", fail)
    return raised


def decode_and_warn(engine: Engine, prompts: list[list[int]], params: Any) -> list[Completion]:
    """Decode, expecting one RuntimeWarning."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        completions: list[Completion] = engine.decode(prompts, params)
    assert [warning.category for warning in said] == [RuntimeWarning]
    assert "draft" in str(said[0].message) and "out of luck" in str(said[0].message)
    return completions


FAILURES = [
    ("sd", "store", 1),
    ("sd", "store", 4),
    ("sd", "draft", 1),
    ("sd", "draft", 15),
    ("ssd", "store", 1),
    ("ssd", "store", 4),
    ("ssd", "look_up", 1),
    ("ssd", "look_up", 6),
    ("ssd", "branch", 1),
    ("ssd", "branch", 2),
    ("ssd", "branch", 23),
]


@pytest.mark.parametrize("mode,phase,call", FAILURES)
def test_a_draft_that_raises_in_the_middle_loses_no_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, phase: str, call: int
) -> None:
    expected = engine("ar").decode(PROMPTS, PARAMS)
    broken = engine(mode, max_batch=3)
    raised = break_draft(broken, monkeypatch, phase, call)
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert len(raised) == 1
    assert (raised[0] == threading.get_ident()) == (phase != "branch")  # branches run on the worker
    assert tokens_of(found) == tokens_of(expected)
    assert [c.text for c in found] == [c.text for c in expected]
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert found[0].degraded and found[4].degraded  # the longest, which runs throughout, and the last


@pytest.mark.parametrize("mode,phase,call", FAILURES)
def test_an_engine_without_its_draft_still_serves(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, phase: str, call: int
) -> None:
    broken = engine(mode, max_batch=3)
    break_draft(broken, monkeypatch, phase, call)
    decode_and_warn(broken, PROMPTS, PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning was given already
        found = broken.decode(PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    assert all(c.degraded and c.stats.mode == "ar" for c in found)
    assert broken.core.scheduler.pages.available == broken.core.scheduler.pages.capacity


@pytest.mark.parametrize("mode,phase", [("sd", "draft"), ("ssd", "branch"), ("ssd", "store")])
def test_a_request_that_had_ended_before_is_not_degraded(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, phase: str
) -> None:
    broken = engine(mode, max_batch=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (before,) = broken.decode(PROMPTS[:1], PARAMS[:1])
    break_draft(broken, monkeypatch, phase, 1)
    (after,) = decode_and_warn(broken, PROMPTS[:1], PARAMS[:1])
    assert (before.degraded, after.degraded) == (False, True)
    assert before.token_ids == after.token_ids


@pytest.mark.parametrize("mode,phase,call", [("sd", "draft", 8), ("ssd", "look_up", 6), ("ssd", "branch", 12)])
def test_sampled_requests_are_completed_after_a_failure_too(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, phase: str, call: int
) -> None:
    """The tokens before the failure are the same; later ones are drawn differently."""
    params = SamplingParams(temperature=1.0, max_new_tokens=30, ignore_eos=True, seed=3)
    whole = engine(mode, max_batch=3).decode(PROMPTS, params)
    broken = engine(mode, max_batch=3)
    break_draft(broken, monkeypatch, phase, call)
    found = decode_and_warn(broken, PROMPTS, params)
    assert [len(c.token_ids) for c in found] == [30] * len(PROMPTS)
    assert all(c.token_ids[:2] == w.token_ids[:2] for c, w in zip(found[:3], whole[:3], strict=True))


# Trees and n-grams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase,call", [("store", 1), ("store", 4), ("draft", 1), ("draft", 2), ("draft", 14)])
def test_a_draft_that_raises_within_a_tree_loses_no_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, phase: str, call: int
) -> None:
    """It raises at the root, or after some levels are drafted."""
    expected = engine("ar").decode(PROMPTS, PARAMS)
    broken = engine("sd", tree=(2, 2, 1), max_batch=3)
    break_draft(broken, monkeypatch, phase, call)
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert [(c.token_ids, c.text, c.finish_reason) for c in found] == [(c.token_ids, c.text, c.finish_reason) for c in expected]
    assert found[0].degraded and found[4].degraded


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: object, method: str, call: int) -> None:
    """Make the call-th call of a method raise."""
    original, calls = getattr(owner, method), [0]

    def run(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise RuntimeError("out of luck")
        return original(*arguments)

    monkeypatch.setattr(owner, method, run)


@pytest.mark.parametrize("call", [1, 5])
def test_a_draft_that_fails_after_a_verification_keeps_the_committed_tokens(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The draft moves its own K/V of an accepted path after the target has decided."""
    broken = engine("sd", tree=(2, 2, 1), max_batch=3)
    fail_at(monkeypatch, broken.core.loop.drafter, "compact", call)  # type: ignore[union-attr]
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    assert found[0].stats.rounds > call


@pytest.mark.parametrize("mode,draft", [("sd", "ngram"), ("ssd", "draft")])
@pytest.mark.parametrize("call", [1, 4])
def test_a_failure_of_n_grams_loses_no_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, draft: str, call: int
) -> None:
    expected = engine("ar").decode(PROMPTS, PARAMS)
    broken = engine(mode, draft, fallback="ngram", max_batch=3)
    fail_at(monkeypatch, ops, "ngram_propose", call)
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert [(c.token_ids, c.text, c.finish_reason) for c in found] == [(c.token_ids, c.text, c.finish_reason) for c in expected]
    assert found[0].degraded and found[4].degraded


@pytest.mark.parametrize("options", [{"fallback": "ngram"}, {"fan_out": "measured"}], ids=str)
def test_a_failure_while_learning_loses_no_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The round that it was learning from is committed."""
    broken = engine("ssd", max_batch=3, **options)
    fail_at(monkeypatch, broken.core.loop.cache, "learn", 3)  # type: ignore[union-attr]
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize(
    "call,at",
    [(call, at) for call in ("stage", "enter", "retire") for at in (1, 4)]
    + [(call, at) for call in ("send_speculation", "send_outcome") for at in (1, 7)],
)
def test_losing_the_drafts_device_loses_no_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, call: str, at: int
) -> None:
    """Whichever table the target was sending to it: the target continues with its own state."""
    expected = tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    broken = engine(mode, max_batch=3, draft_device="cpu")
    fail_at(monkeypatch, broken.core.loop.link, call, at)  # type: ignore[union-attr]
    found = decode_and_warn(broken, PROMPTS, PARAMS)
    assert tokens_of(found) == expected
    assert any(c.degraded for c in found)
    assert broken.core.scheduler.pages.available == broken.core.scheduler.pages.capacity


def test_a_draft_that_fails_twice_in_a_round_loses_no_token(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in its thread, and again when it is told of the outcome."""
    broken = engine("ssd", max_batch=3, draft_device="cpu")
    fail_at(monkeypatch, broken.core.loop.link, "send_outcome", 4)  # type: ignore[union-attr]
    break_draft(broken, monkeypatch, "branch", 16)
    assert tokens_of(decode_and_warn(broken, PROMPTS, PARAMS)) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))


def test_running_out_of_memory_is_handled_like_any_other_failure(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = engine("ssd")
    break_draft(broken, monkeypatch, "branch", 3, error=MemoryError)
    assert tokens_of(decode_and_warn(broken, PROMPTS, PARAMS)) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))


def test_an_error_of_the_target_is_raised_to_the_caller(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding cannot continue, but the draft is idle afterwards and no page is lost."""
    broken = engine("ssd")

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no target")

    with monkeypatch.context() as patch:
        patch.setattr(broken.core.loop.verifier, "verify", fail)
        with pytest.raises(RuntimeError, match="no target"):
            broken.decode(PROMPTS, PARAMS)
    assert broken.core.scheduler.pages.available == broken.core.scheduler.pages.capacity
    found = broken.decode(PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    assert not any(c.degraded for c in found)


def test_a_failed_drafts_thread_ends(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for phase in ("store", "branch"):
        broken = engine("ssd", max_batch=3)
        worker = broken.core.executor._worker
        broken.decode([1], SamplingParams(max_new_tokens=4))
        break_draft(broken, monkeypatch, phase, 2)
        decode_and_warn(broken, PROMPTS, PARAMS)
        with pytest.raises(RuntimeError, match="shutdown"):
            worker.submit(print)


# A draft that cannot be loaded -----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(models: Models, tmp_path: Path) -> Path:
    """A copy of the draft whose weights can be damaged."""
    for file in Path(models.draft).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def truncate(draft: Path) -> None:
    weights = draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])


def lose_the_weights(draft: Path) -> None:
    (draft / "model.safetensors").unlink()


def reshape(draft: Path) -> None:
    config = draft / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 48'))


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("damage", [truncate, lose_the_weights, reshape])
def test_an_engine_decodes_without_a_draft_that_cannot_be_loaded(
    engine: MakeEngine, damaged: Path, mode: str, damage: Callable[[Path], None]
) -> None:
    damage(damaged)
    with pytest.warns(RuntimeWarning, match=str(damaged)) as said:
        without = engine(mode, str(damaged))
    assert len(said) == 1
    found = without.decode(PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    assert all(c.degraded and c.stats.mode == "ar" for c in found)


def test_an_engine_decodes_without_a_draft_that_cannot_be_allocated(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("ssd.decoding.state.Branches.allocate", refuse)
    with pytest.warns(RuntimeWarning, match="not enough memory"):
        without = engine("ssd")
    found = without.decode(PROMPTS, PARAMS)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, PARAMS))
    assert all(c.degraded for c in found)


def test_an_engine_decodes_without_a_draft_whose_distributions_cannot_be_allocated(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are needed once a request samples; greedy requests before it use the draft."""
    without = engine("ssd")

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("out of luck: not enough memory")

    monkeypatch.setattr(without.core.loop.drafter.tables.speculation, "hold_distributions", refuse)  # type: ignore[union-attr]
    assert not without.decode(PROMPTS[0], PARAMS[0]).degraded
    params = SamplingParams(temperature=1.0, max_new_tokens=20, ignore_eos=True, seed=1)
    found = decode_and_warn(without, PROMPTS, params)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, params))
    assert all(completion.degraded for completion in found)
