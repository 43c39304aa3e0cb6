"""N-gram proposals in the engine: as the draft, and as the fallback of a miss. They are proposed by a rule, not drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from engine.cases import (
    MakeEngine,
    Models,
    accepted_in_all,
    autoregressive_tokens,
    hits_and_look_ups,
    random_prompt,
    random_prompts,
    tokens_of,
    was_cut_in_a_round,
)
from ssd import Engine, SamplingParams
from ssd.decoding.fallback import FallbackPolicy

# Some prompts repeat themselves, and greedy decoding soon does; some have no match. There are more prompts than slots.
PROMPTS = [
    random_prompt(5) * 4,
    random_prompt(1),
    random_prompt(16) * 2,
    random_prompt(255),
    [7] * 17,
    *random_prompts((2, 33, 9)),
]
LENGTHS = (48, 40, 31, 20, 48, 1, 37, 3)
GREEDY = [SamplingParams(max_new_tokens=n) for n in LENGTHS]
SAMPLED = [SamplingParams(temperature=0.5, max_new_tokens=n, seed=i) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def autoregressive(models: Models) -> dict[str, list[list[int]]]:
    """The tokens of PROMPTS with GREEDY, by dtype."""
    return autoregressive_tokens(models, PROMPTS, GREEDY)


# A draft without a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lookahead", [1, 4, 10])
def test_greedy_decoding_with_n_grams_equals_autoregressive(
    engine: MakeEngine, autoregressive: dict[str, list[list[int]]], batch: int, dtype: str, lookahead: int
) -> None:
    found = engine("sd", "ngram", max_batch=batch, dtype=dtype, lookahead=lookahead).decode(PROMPTS, GREEDY)
    assert tokens_of(found) == autoregressive[dtype]
    assert {completion.stats.mode for completion in found} == {"sd"}
    assert not any(completion.degraded for completion in found)
    assert sum(map(accepted_in_all, found)) > 0


def test_sampled_tokens_do_not_depend_on_the_batch(engine: MakeEngine) -> None:
    alone, together = (engine("sd", "ngram", max_batch=batch).decode(PROMPTS, SAMPLED) for batch in (1, 8))
    assert tokens_of(together) == tokens_of(alone)
    proposed = sum(length * rounds for c in together for length, rounds in c.stats.proposed_counts.items())
    assert 0 < sum(map(accepted_in_all, together)) < proposed


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """A target that continues with the next number, and with 0 after 7. 6 ends a sequence."""
    tensors = tiny.write_model(tmp_path, vocab_size=8, num_hidden_layers=1, eos_token_id=6)
    for name, weight in tensors.items():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()
        elif "norm" in name:
            weight.fill_(1.0)
    tensors["model.embed_tokens.weight"].copy_(torch.eye(8, 64))
    tensors["lm_head.weight"].copy_(10 * torch.eye(8, 64).roll(1, dims=0))
    tiny.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_repeating_text_is_proposed_and_accepted_completely(engine: MakeEngine, counting: Path) -> None:
    """Every round proposes the whole lookahead, and accepts all of it."""
    params = SamplingParams(max_new_tokens=41, ignore_eos=True)
    completion = engine("sd", "ngram", target=counting, lookahead=4).decode([*range(8), 0], params)
    assert completion.token_ids == [i % 8 for i in range(1, 42)]
    assert (completion.stats.rounds, completion.stats.accepted_at) == (8, [8, 8, 8, 8])


def test_no_more_tokens_are_proposed_than_follow_the_match(engine: MakeEngine, counting: Path) -> None:
    """In a periodic text the longest match ends one period before the end, so exactly one period follows it."""
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    completion = engine("sd", "ngram", target=counting, lookahead=12).decode([*range(8), 0], params)
    assert max(completion.stats.proposed_counts) == 8


def test_nothing_is_proposed_without_a_match(engine: MakeEngine) -> None:
    """Such a round is a step of autoregressive decoding."""
    found = engine("sd", "ngram").decode([5], SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert found.stats.proposed_counts == {0: 1}
    assert (found.stats.acceptance_rate, found.stats.accepted_at) == (None, [])


def test_the_n_gram_draft_loads_no_model(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("there is none")

    monkeypatch.setattr("ssd.serving.loading.load_draft", refuse)
    assert engine("sd", "ngram").mode == "sd"
    assert engine("auto", "ngram").mode == "sd"


@pytest.mark.parametrize("tokens", range(1, 8))
def test_a_sequence_has_exactly_the_requested_number_of_tokens(engine: MakeEngine, tokens: int) -> None:
    found = engine("sd", "ngram").decode(PROMPTS[:5], SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    assert [len(completion.token_ids) for completion in found] == [tokens] * 5


def test_a_sequence_may_end_at_the_end_of_the_context(engine: MakeEngine) -> None:
    context = tiny.SIZES["max_position_embeddings"]
    prompts = [(random_prompt(8) * 64)[: context - n] for n in (1, 2, 9, 40)]
    params = [SamplingParams(max_new_tokens=context - len(prompt), ignore_eos=True) for prompt in prompts]
    found = engine("sd", "ngram", lookahead=6).decode(prompts, params)
    assert tokens_of(found) == tokens_of(engine("ar").decode(prompts, params))


def test_a_sequence_may_end_in_the_middle_of_a_round(engine: MakeEngine, counting: Path) -> None:
    """It ends with a proposed end-of-sequence token that has others after it."""
    one = engine("sd", "ngram", target=counting, lookahead=6)
    completion = one.decode([*range(8), 0], SamplingParams(max_new_tokens=41))
    assert (completion.token_ids, completion.finish_reason) == ([1, 2, 3, 4, 5, 6], "eos")
    assert was_cut_in_a_round(completion)


# The fallback of a miss -------------------------------------------------------------------------------------------------------


def fallbacks(engine: Engine, prompts: list[list[int]], params: Any, path: Path) -> list[str]:
    """The names of the rounds' fallbacks, "fallback" (drafted) or "n-gram", in order."""
    engine.trace.record()
    engine.decode(prompts, params)
    engine.trace.write(path)
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    return [name for name in names if name in ("fallback", "n-gram")]


@pytest.mark.parametrize("fallback,name", [("neural", "fallback"), ("ngram", "n-gram")])
def test_every_miss_gets_the_requested_fallback(engine: MakeEngine, tmp_path: Path, fallback: str, name: str) -> None:
    got = fallbacks(engine("ssd", fallback=fallback, max_batch=2), PROMPTS, GREEDY, tmp_path / "trace.json")
    assert len(got) > 10
    assert set(got) == {name}


def test_an_n_gram_costs_no_forward_pass_of_the_draft(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one, phases = engine("ssd", fallback="ngram"), []
    cache = one.core.loop.cache  # type: ignore[union-attr]
    model = cache.drafter.model
    look_up, forward = cache.look_up, model.forward

    def looking_up(*arguments: Any) -> None:
        phases.append("look up")
        look_up(*arguments)
        phases.append("looked up")

    def passing(*arguments: Any) -> Any:
        phases.append("pass")
        return forward(*arguments)

    monkeypatch.setattr(cache, "look_up", looking_up)
    monkeypatch.setattr(model, "forward", passing)
    one.decode(PROMPTS, GREEDY)
    within = [phases[i + 1] for i, phase in enumerate(phases) if phase == "look up"]
    assert within == ["looked up"] * len(within)


def test_the_cache_is_hit_after_n_grams_too(engine: MakeEngine) -> None:
    """The outcomes of a round are guessed even if its speculation was an n-gram, or empty."""
    found = engine("ssd", fallback="ngram").decode(PROMPTS, GREEDY)
    hits, look_ups = hits_and_look_ups(found)
    assert 0 < hits < look_ups
    assert sum(completion.stats.proposed_counts.get(0, 0) for completion in found) > len(PROMPTS)
    assert sum(map(accepted_in_all, found)) > 0


def auto_drafts_its_first_misses(engine: Engine, path: Path) -> None:
    names = fallbacks(engine, PROMPTS, GREEDY, path)
    assert names[: FallbackPolicy.ENOUGH] == ["fallback"] * FallbackPolicy.ENOUGH


def test_auto_drafts_its_misses_until_it_has_measured(engine: MakeEngine, tmp_path: Path) -> None:
    auto_drafts_its_first_misses(engine("ssd", fallback="auto", max_batch=2), tmp_path / "trace.json")


def test_the_check_detects_an_auto_that_takes_n_grams_at_once(
    engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FallbackPolicy, "choose", lambda fallback, n: "ngram")
    with pytest.raises(AssertionError):
        auto_drafts_its_first_misses(engine("ssd", fallback="auto", max_batch=2), tmp_path / "trace.json")


@pytest.mark.parametrize("t_neural,name", [(1e-9, "fallback"), (1e3, "n-gram")])
def test_auto_takes_the_fallback_that_was_measured_as_cheaper(
    engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, t_neural: float, name: str
) -> None:
    """A round takes a second; drafting for a miss takes almost no time, or a thousand seconds."""
    one = engine("ssd", fallback="auto")
    chosen = one.core.loop.cache.fallback  # type: ignore[union-attr]
    chosen.t_round, chosen.t_neural = [1.0] * 8, [t_neural] * 8
    monkeypatch.setattr(chosen, "observe_times", lambda *spans: None)
    for hit, neural in ((True, True), (False, True), (False, False)):
        for _ in range(1000):
            chosen.observe_outcome(hit=hit, neural=neural, tokens=3 if neural else 1)
    assert set(fallbacks(one, PROMPTS, GREEDY, tmp_path / "trace.json")) == {name}


def test_every_outcome_is_counted_by_the_origin_of_its_speculation(engine: MakeEngine) -> None:
    """ "auto" compares the decode's own figures: rounds and tokens, by hit, drafted miss and n-gram."""
    one = engine("ssd", fallback="auto", max_batch=3)
    chosen, turn = one.core.loop.cache.fallback, [0]  # type: ignore[union-attr]

    def alternate(n: int) -> str:
        turn[0] += 1
        return "ngram" if turn[0] % 2 else "neural"

    chosen.choose = alternate
    found = one.decode(PROMPTS, SamplingParams(max_new_tokens=40, ignore_eos=True))
    hits, look_ups = hits_and_look_ups(found)
    assert all(rounds > 0 for _, rounds in chosen.committed.values())
    # An outcome is counted when it is looked up. The outcome of a sequence's last round never is.
    assert sum(rounds for _, rounds in chosen.committed.values()) == chosen.look_ups == look_ups
    assert hits - len(PROMPTS) <= chosen.hits <= hits
