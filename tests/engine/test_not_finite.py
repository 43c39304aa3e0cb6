"""Logits that are NaN or infinite. The target's end their request, with one sentence and the tokens so far, and no other
request. The draft's end their speculation, which changes no token; after 8 such rounds in a row the draft counts as failed.

A hook spoils rows by their token or position, so the same rows are spoilt however a mode computes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from engine.cases import (
    FIXED,
    PADDED,
    VOCABULARY,
    MakeCaptured,
    MakeEngine,
    Models,
    accepted_in_all,
    hits_and_look_ups,
    random_prompt,
    random_prompts,
    tokens_of,
)
from engine.test_degraded import break_draft
from ssd import Completion, Engine, SamplingParams
from ssd.decoding import speculative
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.kv.cache import KVCache, Rows
from ssd.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("eager_rounds")

NAN = float("nan")
Mask = Callable[[Rows], Tensor]  # which rows are spoilt, [R] bool

CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ar": ("ar", None, {}),
    "sd": ("sd", "draft", {}),
    "sd, tree": ("sd", "draft", {"tree": (2, 2, 1)}),
    "sd, n-gram": ("sd", "ngram", {}),
    "sd, two devices": ("sd", "draft", {"draft_device": "cpu"}),
    "ssd": ("ssd", "draft", FIXED),
    "ssd, n-gram": ("ssd", "draft", FIXED | {"fallback": "ngram"}),
    "ssd, auto": ("ssd", "draft", {"fallback": "auto"}),
    "ssd, two devices": ("ssd", "draft", FIXED | {"draft_device": "cpu"}),
}
WITH_DRAFT = [case for case in CASES if case not in ("ar", "sd, n-gram")]
SAMPLING = {"greedy": {}, "sampled": {"temperature": 1.0}}
every_case = pytest.mark.parametrize("case", CASES)
every_draft = pytest.mark.parametrize("case", WITH_DRAFT)
every_sampling = pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)


def made(engine: MakeEngine, case: str, **options: Any) -> Engine:
    mode, draft, settings = CASES[case]
    return engine(mode, draft, **settings | {"max_batch": 3} | options)


def spoil(monkeypatch: pytest.MonkeyPatch, mask: Mask, role: str = "target", layers: int = 3) -> None:
    """Make hidden states NaN, before the head, in a model with this many layers. The draft "self:2" has two."""
    forward = Transformer.forward

    def run(model: Transformer, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        hidden, bad = forward(model, rows, cache, every), mask(rows)[every - 1 :: every]
        return hidden.masked_fill(bad[:, None], NAN) if model.config.num_layers == layers else hidden

    monkeypatch.setattr(Transformer, "forward", run)


def spoil_model(monkeypatch: pytest.MonkeyPatch, model: Any, mask: Mask) -> None:
    forward = model.forward

    def run(rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        return forward(rows, cache, every).masked_fill(mask(rows)[every - 1 :: every, None], NAN)

    monkeypatch.setattr(model, "forward", run)


def change_logits(monkeypatch: pytest.MonkeyPatch, model: Any, change: Callable[[Tensor], Tensor]) -> None:
    logits = model.logits

    def run(hidden: Tensor, out: Tensor | None = None) -> Tensor:
        changed = change(logits(hidden))
        return changed if out is None else out.copy_(changed)

    monkeypatch.setattr(model, "logits", run)


def spoil_draft(monkeypatch: pytest.MonkeyPatch, engine: Engine, mask: Mask) -> None:
    """The same for the draft of an engine whose programs are not recorded."""
    model = engine.core.loop.drafter.model  # type: ignore[union-attr]
    spoil_model(monkeypatch, model, mask)


def spoil_target(monkeypatch: pytest.MonkeyPatch, engine: Engine, mask: Mask) -> None:
    model = engine.core.loop.verifier.model
    spoil_model(monkeypatch, model, mask)


def after(position: int) -> Mask:
    return lambda rows: rows.positions >= position


def everywhere(rows: Rows) -> Tensor:
    return torch.ones_like(rows.ids, dtype=torch.bool)


def some_tokens(rows: Rows) -> Tensor:
    """A fifth of all tokens; a row depends on nothing else, so every mode has the same bad rows."""
    return rows.ids % 5 == 0


def assert_failed(completion: Completion, tokens: list[int]) -> None:
    assert (completion.token_ids, completion.finish_reason) == (tokens, "error")
    assert completion.error is not None
    assert f"output token {len(tokens) + 1} " in completion.error and completion.error.endswith(".")


def assert_all_free(engine: Engine) -> None:
    pages = engine.core.scheduler.pages
    assert pages.available == pages.capacity and not engine.core.scheduler.busy


# The target -------------------------------------------------------------------------------------------------------------------

# The second sequence alone reaches position 49, after its 20th token. The fourth takes its slot and its pages.
PROMPTS = random_prompts((3, 30, 9, 1, 12))
LENGTHS = (40, 40, 32, 24, 30)
TWENTY, LAST_GOOD = 20, 30 + 20 - 1


@every_case
@every_sampling
def test_a_request_ends_where_the_target_is_not_finite_and_the_others_go_on(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str, sampling: dict[str, float]
) -> None:
    params = [SamplingParams(**sampling, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]
    whole = made(engine, case).decode(PROMPTS, params)
    broken = made(engine, case)
    spoil_target(monkeypatch, broken, after(LAST_GOOD))
    found = broken.decode(PROMPTS, params)
    law_only = case == "ssd, auto" and sampling  # its rounds depend on the time they take
    assert_failed(found[1], found[1].token_ids if law_only else whole[1].token_ids[:TWENTY])
    assert len(found[1].token_ids) == TWENTY
    others = [found[i] for i in (0, 2, 3, 4)]
    if not law_only:
        assert tokens_of(others) == [whole[i].token_ids for i in (0, 2, 3, 4)]
    assert all(
        (c.finish_reason, c.error, len(c.token_ids)) == ("length", None, n)
        for c, n in zip(others, (40, 32, 24, 30), strict=True)
    )
    assert not any(c.degraded for c in found)
    assert_all_free(broken)


@every_case
@every_sampling
def test_a_request_without_a_first_token_ends_with_none(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str, sampling: dict[str, float]
) -> None:
    """The prompt's prefill gives NaN; two shorter prompts beside it are decoded."""
    prompts = random_prompts((5, 40, 9))
    params = SamplingParams(**sampling, max_new_tokens=12, ignore_eos=True, seed=1, logprobs=1)
    whole = made(engine, case).decode(prompts, params)
    broken = made(engine, case)
    spoil_target(monkeypatch, broken, after(39))
    found = broken.decode(prompts, params)
    assert_failed(found[1], [])
    assert (found[1].text, found[1].logprobs, found[1].stats.rounds) == ("", [], 0)
    assert [len(found[i].token_ids) for i in (0, 2)] == [12, 12]
    if case != "ssd, auto":
        assert tokens_of(found[::2]) == tokens_of(whole[::2])
    assert_all_free(broken)


def one_nan(logits: Tensor) -> Tensor:
    return logits.index_fill(1, torch.tensor([7]), NAN)


def one_infinity(logits: Tensor) -> Tensor:
    return logits.index_fill(1, torch.tensor([7]), math.inf)


def all_masked(logits: Tensor) -> Tensor:
    return torch.full_like(logits, -math.inf)


@pytest.mark.parametrize("fault", [one_nan, one_infinity, all_masked])
@every_sampling
def test_one_logit_is_enough(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor], Tensor], sampling: dict[str, float]
) -> None:
    broken = engine("ssd")
    model = broken.core.loop.verifier.model
    change_logits(monkeypatch, model, fault)
    assert_failed(broken.decode([1, 2, 3], SamplingParams(**sampling)), [])


@every_sampling
def test_a_masked_logit_is_no_error(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, float]) -> None:
    """It is −inf, and its token is never drawn."""
    params = SamplingParams(**sampling, max_new_tokens=30, ignore_eos=True, seed=4)
    masked = engine("ssd")
    usual = masked.decode(PROMPTS, params)
    banned = sorted({token for completion in usual for token in completion.token_ids})[::2]
    for model in (masked.core.loop.verifier.model, masked.core.loop.drafter.model):  # type: ignore[union-attr]
        change_logits(monkeypatch, model, lambda logits: logits.index_fill(1, torch.tensor(banned), -math.inf))
    found = masked.decode(PROMPTS, params)
    assert all((c.finish_reason, c.error, len(c.token_ids)) == ("length", None, 30) for c in found)
    assert set(banned).isdisjoint(token for c in found for token in c.token_ids)
    assert not any(c.degraded for c in found)


@pytest.mark.parametrize("mode", ["ar", "ssd"])
def test_nan_in_the_padding_of_the_head_is_never_seen(engine: MakeEngine, models: Models, tmp_path: Path, mode: str) -> None:
    tensors = tiny.write_model(tmp_path, tokenizer=VOCABULARY, vocab_size=PADDED)
    tensors["lm_head.weight"][len(VOCABULARY) :] = NAN
    tiny.save_file(tensors, tmp_path / "model.safetensors")
    params = SamplingParams(max_new_tokens=20)
    found = engine(mode, None if mode == "ar" else str(tmp_path), target=tmp_path).decode(PROMPTS, params)
    assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, params))
    assert not any(c.error or c.degraded for c in found)


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_a_checkpoint_whose_weights_are_nan_gives_errors_and_no_text(engine: MakeEngine, tmp_path: Path, mode: str) -> None:
    """The embedding of one token is NaN: a prompt with the token fails at once, another prompt does not."""
    tiny.write_model(tmp_path, tokenizer=VOCABULARY, vocab_size=PADDED)
    tiny.spoil_token(tmp_path, 50)
    broken = engine(mode, target=tmp_path)
    good = [token for token in random_prompt(20) if token != 50]
    params = SamplingParams(max_new_tokens=6)
    expected = engine("ar").decode(good, params)
    assert 50 not in expected.token_ids
    for _ in range(3):  # the pages with NaN are used again
        found = broken.decode([[4, 50, 6, 7], good, [50]], params)
        assert_failed(found[0], [])
        assert_failed(found[2], [])
        assert (found[1].token_ids, found[1].error) == (expected.token_ids, None)


@every_case
def test_a_stream_ends_with_the_text_so_far(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    expected = made(engine, case).decode(PROMPTS[1], params)
    broken = made(engine, case)
    spoil_target(monkeypatch, broken, after(LAST_GOOD))
    beside = broken.stream(PROMPTS[0], params)
    stream = broken.stream(PROMPTS[1], params)
    pieces = list(stream)
    assert stream.completion is not None and broken.tokenizer is not None
    assert_failed(stream.completion, expected.token_ids[:TWENTY])
    assert "".join(pieces) == stream.completion.text == broken.tokenizer.decode(expected.token_ids[:TWENTY])
    assert len("".join(beside)) > 0
    assert beside.completion is not None and beside.completion.error is None and len(beside.completion.token_ids) == 40


def test_a_stop_string_before_the_error_ends_the_text(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = engine("ssd", max_batch=3)
    text = broken.decode(PROMPTS[1], SamplingParams(max_new_tokens=TWENTY, ignore_eos=True)).text
    spoil_target(monkeypatch, broken, after(LAST_GOOD))
    found = broken.decode(PROMPTS[1], SamplingParams(max_new_tokens=40, ignore_eos=True, stop=(text[-3:],)))
    assert (found.finish_reason, found.error) == ("stop", None)


@every_case
def test_there_are_as_many_log_probabilities_as_tokens(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    broken = made(engine, case)
    spoil_target(monkeypatch, broken, after(LAST_GOOD))
    found = broken.decode(PROMPTS[1], SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=2))
    assert found.logprobs is not None and len(found.logprobs) == len(found.token_ids) == TWENTY
    assert all(math.isfinite(value) for logprobs in found.logprobs for value in logprobs.values())


@every_draft
def test_an_engine_that_lost_its_draft_ends_such_a_request_too(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    expected = engine("ar").decode(PROMPTS[1], params)
    broken = made(engine, case)
    break_draft(broken, monkeypatch, "store", 1)
    spoil_target(monkeypatch, broken, after(LAST_GOOD))
    with pytest.warns(RuntimeWarning, match="out of luck"):
        found = broken.decode(PROMPTS[1], params)
    assert_failed(found, expected.token_ids[:TWENTY])
    assert found.degraded


@pytest.mark.parametrize("mode,draft", [("ar", None), ("sd", "self:2"), ("ssd", "self:2")])
@every_sampling
@pytest.mark.parametrize("seed", range(3))
def test_rounds_in_flight_end_such_a_request_once(
    engine: MakeEngine,
    captured: MakeCaptured,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    draft: str | None,
    sampling: dict[str, float],
    seed: int,
) -> None:
    """With the host two rounds ahead, and programs that were recorded before."""
    params = [SamplingParams(**sampling, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]
    spoil(monkeypatch, after(LAST_GOOD))
    expected = engine(mode, draft, max_batch=3, **FIXED).decode(PROMPTS, params)
    assert_failed(expected[1], expected[1].token_ids)
    with captured(mode, seed, draft, max_batch=3, **FIXED)[0] as ahead:
        found = ahead.decode(PROMPTS, params)
        assert_all_free(ahead)
    assert [(c.token_ids, c.error, c.stats.rounds) for c in found] == [(c.token_ids, c.error, c.stats.rounds) for c in expected]


# The draft: the output stays exact --------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of bad rounds makes a draft count as failed."""
    monkeypatch.setattr(speculative, "BAD_ROUNDS", 10**9)


@every_draft
def test_a_draft_that_is_sometimes_not_finite_changes_no_greedy_token(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, patient: None, case: str
) -> None:
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in LENGTHS]
    expected = engine("ar").decode(PROMPTS, params)
    broken = made(engine, case)
    spoil_draft(monkeypatch, broken, some_tokens)
    found = broken.decode(PROMPTS, params)
    assert tokens_of(found) == tokens_of(expected)
    assert not any(c.degraded or c.error for c in found)
    assert sum(map(accepted_in_all, found)) > 0  # the rows before a bad one are used


@pytest.mark.parametrize("draft", ["draft", "trimmed"])
@pytest.mark.parametrize("devices", [{}, {"draft_device": "cpu"}], ids=["one device", "two devices"])
def test_a_hit_and_a_miss_hand_out_the_same_shortened_speculation(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, patient: None, draft: str, devices: dict[str, str]
) -> None:
    """So sampled SSD equals sampled SD, round by round: the same tokens, and as many proposals in each round."""
    params = [SamplingParams(temperature=1.0, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]
    runs = []
    for mode in ("sd", "ssd"):
        broken = engine(mode, draft, max_batch=3, **FIXED, **devices)
        spoil_draft(monkeypatch, broken, some_tokens)
        runs.append(broken.decode(PROMPTS, params))
    plain, cached = runs
    assert tokens_of(cached) == tokens_of(plain)
    assert [c.stats.proposed_counts for c in cached] == [c.stats.proposed_counts for c in plain]
    assert {0, 1, 2, 3, 4} == {length for c in plain for length in c.stats.proposed_counts}
    hits, look_ups = hits_and_look_ups(cached)
    assert 0 < hits < look_ups


def test_a_bad_row_makes_no_guess_and_has_no_rank(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    """With every row of the draft bad there is no hit, whatever the fan-out learns."""
    broken = engine("ssd", fan_out="measured", fallback="ngram", max_batch=3)
    spoil_draft(monkeypatch, broken, everywhere)
    found = broken.decode(PROMPTS, SamplingParams(max_new_tokens=30, ignore_eos=True))
    assert hits_and_look_ups(found)[0] == 0
    assert isinstance(broken.core.loop, SpeculativeSpeculative)
    budget = broken.core.loop.cache.tables.branches.budget
    assert all(rank >= budget for c in found for rank in c.stats.rank_counts)


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@every_sampling
@pytest.mark.parametrize("seed", range(3))
def test_recorded_rounds_with_such_a_draft_give_the_tokens_and_counts_of_eager_ones(
    engine: MakeEngine,
    captured: MakeCaptured,
    monkeypatch: pytest.MonkeyPatch,
    patient: None,
    mode: str,
    sampling: dict[str, float],
    seed: int,
) -> None:
    params = [SamplingParams(**sampling, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]
    spoil(monkeypatch, some_tokens, layers=2)
    expected = engine(mode, "self:2", max_batch=3, **FIXED).decode(PROMPTS, params)
    assert min(length for c in expected for length in c.stats.proposed_counts) == 0
    with captured(mode, seed, "self:2", max_batch=3, **FIXED)[0] as ahead:
        found = ahead.decode(PROMPTS, params)
    assert [(c.token_ids, c.stats.proposed_counts, c.stats.hits_per_k, c.degraded) for c in found] == [
        (c.token_ids, c.stats.proposed_counts, c.stats.hits_per_k, False) for c in expected
    ]


# The draft: too many bad rounds -----------------------------------------------------------------------------------------------


def decode_and_note(engine: Engine, prompts: Any, params: Any) -> tuple[list[Completion], list[str]]:
    """Returns (completions, warnings)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = engine.decode(prompts, params)
    return found, [str(warning.message) for warning in said]


@every_draft
@every_sampling
def test_a_draft_that_is_never_finite_counts_as_failed_after_8_rounds(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str, sampling: dict[str, float]
) -> None:
    params = [SamplingParams(**sampling, max_new_tokens=n, ignore_eos=True, seed=n) for n in LENGTHS]
    broken = made(engine, case)
    rounds, run_round = [], broken.core.loop.round
    monkeypatch.setattr(broken.core.loop, "round", lambda n: (rounds.append(n), run_round(n))[1])
    spoil_draft(monkeypatch, broken, everywhere)
    found, said = decode_and_note(broken, PROMPTS, params)
    assert len(said) == 1
    assert "the draft failed" in said[0] and "NaN" in said[0] and "8 rounds in a row" in said[0]
    assert broken.mode == "ar" and len(rounds) in (8, 9)  # with n-grams the first round needs no logits of the draft
    assert [len(c.token_ids) for c in found] == list(LENGTHS)
    assert all(c.degraded and c.finish_reason == "length" for c in found)
    if not sampling:
        assert tokens_of(found) == tokens_of(engine("ar").decode(PROMPTS, params))
    assert_all_free(broken)
    again, said = decode_and_note(broken, PROMPTS, params)
    assert said == [] and all(c.stats.mode == "ar" for c in again)


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("case", ["sd", "sd, tree", "ssd", "ssd, two devices"])
def test_a_good_round_after_7_bad_ones_keeps_the_draft(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, case: str, sequences: int
) -> None:
    """Seven bad rounds and a good one, in turns. SSD drafts for the next round too: six rounds with NaN make seven bad
    ones, or six if a branch of the good round is hit."""
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    prompts = random_prompts((20, 5, 9))[:sequences]
    expected = engine("ar").decode(prompts, params)
    broken = made(engine, case)
    loop, executor = broken.core.loop, broken.core.executor
    bad_rounds: list[bool] = []
    count, now_bad = [0], [False]
    run_round, learn = loop.round, loop.learn

    def counted(n: int) -> Any:
        executor.settle()
        count[0] += 1
        now_bad[0] = count[0] % 8 in range(1, 7 if case.startswith("ssd") else 8)
        return run_round(n)

    def noted(round: Any, reports: Any) -> None:
        bad_rounds.append(any(report.bad for report in reports.values()))
        learn(round, reports)

    monkeypatch.setattr(loop, "round", counted)
    monkeypatch.setattr(loop, "learn", noted)
    spoil_draft(monkeypatch, broken, lambda rows: everywhere(rows) & now_bad[0])
    found, said = decode_and_note(broken, prompts, params)
    assert bad_rounds[:8] == [True] * 7 + [False]
    assert bad_rounds[8:15].count(True) >= 6
    assert said == [] and not any(c.degraded for c in found)
    assert tokens_of(found) == tokens_of(expected)


def test_one_bad_sequence_in_a_batch_makes_a_round_bad(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is told of a draft that does nothing for a request, and every request goes on."""
    broken = engine("sd", max_batch=3)
    spoil_draft(monkeypatch, broken, after(100))
    prompts = random_prompts((5, 110, 9))
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    found, said = decode_and_note(broken, prompts, params)
    assert len(said) == 1 and found[1].degraded
    assert tokens_of(found) == tokens_of(engine("ar").decode(prompts, params))


def test_bad_rows_beyond_the_end_of_a_sequence_are_no_bad_rounds(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last speculations are shorter than K, and the rows after them are padding."""
    broken = engine("sd", max_batch=3)
    spoil_draft(monkeypatch, broken, after(5 + 3 - 2))
    for _ in range(12):
        found, said = decode_and_note(broken, random_prompts((5,)), SamplingParams(max_new_tokens=3, ignore_eos=True))
        assert said == [] and not found[0].degraded
