"""A decode's look-ups: which guesses would have hit, how a measured fan-out learns from them, and the effect of Saguaro
sampling.

With the neural fallback the outcomes of a decode do not depend on the fan-out, so one decode predicts the hits of all others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from engine.cases import MakeEngine, accepted_in_all, hits_and_look_ups, random_prompts, tokens_of
from ops.cases import generator
from ssd import Completion, Engine, SamplingParams
from ssd.decoding.cache import SpeculationCache
from ssd.decoding.fanout import Measured, tables
from ssd.decoding.ssd import SpeculativeSpeculative
from ssd.options import SpeculationOptions

LOOKAHEAD, BUDGET = 3, 7
PROMPTS = random_prompts((5, 17, 1, 30, 9, 2, 12))  # more prompts than slots
PARAMS = {
    "greedy": SamplingParams(max_new_tokens=40, ignore_eos=True),
    "sampled": SamplingParams(temperature=1.0, top_p=0.95, max_new_tokens=40, ignore_eos=True),
}


@dataclass(frozen=True)
class LookUp:
    """An outcome, and whether it was hit. after_hit: whether the speculation that it is the outcome of came from a hit."""

    after_hit: bool
    spec_len: int
    k: int
    rank: int
    hit: bool


def cache_of(engine: Engine) -> SpeculationCache:
    assert isinstance(engine.core.loop, SpeculativeSpeculative)
    return engine.core.loop.cache


def decode(
    engine: Engine, params: SamplingParams, prompts: list[list[int]] = PROMPTS
) -> tuple[list[Completion], list[list[LookUp]], list[LookUp]]:
    """Returns (completions, each sequence's look-ups, all look-ups in order). The prompts must differ in length."""
    found: dict[int, list[LookUp]] = {len(prompt): [] for prompt in prompts}
    in_order, run_round = [], engine.core.loop.round

    def watched(n: int) -> Any:
        running = dict(engine.core.scheduler.running)
        result = run_round(n)
        for slot, request in sorted(running.items()):
            seen = result.outcomes[slot]
            if seen is not None:
                found[len(request.prompt)].append(
                    LookUp(seen.after_hit, seen.spec_len, seen.k, seen.rank, result.verification.slots[slot].hit)
                )
                in_order.append(found[len(request.prompt)][-1])
        return result

    engine.core.loop.round = watched  # type: ignore[method-assign]
    completions = engine.decode(prompts, params)
    assert not any(completion.degraded for completion in completions)
    return completions, list(found.values()), in_order


def replay(sequence: list[LookUp], table: Tensor) -> list[LookUp]:
    """Replay the same outcomes with another table: an outcome is a hit if the table has a guess for its rank."""
    replayed, after_hit = [], False  # there are no guesses for a prompt, so the first speculation follows a miss
    for seen in sequence:
        hit = seen.rank < int(table[int(after_hit), seen.spec_len, seen.k])
        replayed.append(LookUp(after_hit, seen.spec_len, seen.k, seen.rank, hit))
        after_hit = hit
    return replayed


def random_table(seed: int) -> Tensor:
    """Every row divides the budget at random, differently after a hit and after a miss."""
    table = torch.zeros(2, LOOKAHEAD + 1, LOOKAHEAD + 1, dtype=torch.int32)
    for row in range(2 * (LOOKAHEAD + 1)):
        spec_len = row % (LOOKAHEAD + 1)
        accepted_counts = torch.randint(0, spec_len + 1, (BUDGET,), generator=generator(100 * seed + row))
        table[row // (LOOKAHEAD + 1), spec_len] = torch.bincount(accepted_counts, minlength=LOOKAHEAD + 1)
    return table


# Ranks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft,batch", [("draft", 3), ("trimmed", 8), ("self:2", 1)])
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("saguaro_c", [1.0, 0.3])
def test_an_outcomes_rank_predicts_the_hits_of_other_fan_outs(
    engine: MakeEngine, draft: str, batch: int, params: str, saguaro_c: float
) -> None:
    """Recorded once, with the whole budget for one accepted count, and predicted for other fan-outs, look-up by look-up."""
    options = {"lookahead": LOOKAHEAD, "budget": BUDGET, "fallback": "neural", "saguaro_c": saguaro_c}
    _, recorded, _ = decode(engine("ssd", draft, fan_out=(7, 0, 0, 0), **options), PARAMS[params])
    hits: Counter[bool] = Counter()
    for fan_out in ((0, 0, 0, 7), (2, 2, 1, 2), (1, 0, 6, 0)):
        _, found, _ = decode(engine("ssd", draft, fan_out=fan_out, max_batch=batch, **options), PARAMS[params])
        assert found == [replay(sequence, tables(fan_out, LOOKAHEAD, BUDGET)) for sequence in recorded]
        hits.update(seen.hit for sequence in found for seen in sequence)
    assert min(hits[True], hits[False]) > 20


@pytest.mark.parametrize("seed", range(3))
def test_guesses_follow_the_tables_row(engine: MakeEngine, seed: int) -> None:
    """The row of the speculation in flight, chosen by hit or miss and by length. N-grams have any length."""
    one = engine("ssd", lookahead=LOOKAHEAD, budget=BUDGET, fan_out="uniform", fallback="ngram")
    table = random_table(seed)
    cache_of(one).fan_out_table = table
    _, found, _ = decode(one, PARAMS["sampled"])
    assert found == [replay(sequence, table) for sequence in found]
    rows = {(seen.after_hit, seen.spec_len) for sequence in found for seen in sequence}
    assert len(rows) >= 4 and {after_hit for after_hit, _ in rows} == {False, True}


@pytest.mark.parametrize("fallback", ["neural", "ngram"])
def test_stats_count_the_look_ups(engine: MakeEngine, fallback: str) -> None:
    """Look-ups by rank for every round except the first, and hits by accepted count."""
    completions, found, _ = decode(engine("ssd", fallback=fallback), PARAMS["sampled"])
    for completion, sequence in zip(completions, found, strict=True):
        stats = completion.stats
        assert stats.rank_counts == dict(sorted(Counter(seen.rank for seen in sequence).items()))
        assert sum(stats.rank_counts.values()) == stats.rounds - 1
        per_k = {k: [seen.hit for seen in sequence if seen.k == k] for k in sorted({seen.k for seen in sequence})}
        assert stats.hits_per_k == {k: (sum(hits), len(hits)) for k, hits in per_k.items()}


@pytest.mark.parametrize("mode,fallback", [("sd", "neural"), ("ssd", "neural"), ("ssd", "ngram")])
@pytest.mark.parametrize("params", PARAMS)
def test_stats_count_proposals_and_acceptances_by_position(engine: MakeEngine, mode: str, fallback: str, params: str) -> None:
    for completion in engine(mode, fallback=fallback).decode(PROMPTS, PARAMS[params]):
        stats = completion.stats
        proposed = sum(length * rounds for length, rounds in stats.proposed_counts.items())
        assert sum(stats.proposed_counts.values()) == stats.rounds
        assert max(stats.proposed_counts) <= 4
        assert sum(stats.accepted_at) == accepted_in_all(completion)
        assert stats.accepted_at == sorted(stats.accepted_at, reverse=True)
        assert stats.acceptance_rate == pytest.approx(sum(stats.accepted_at) / proposed)


def test_a_token_that_the_draft_cannot_propose_ranks_after_every_guess(engine: MakeEngine) -> None:
    """Every fourth token is missing from this draft's vocabulary."""
    one = engine("ssd", "trimmed", fallback="neural")
    completions, found, _ = decode(one, PARAMS["greedy"])
    size = cache_of(one).drafter.model.vocab_size
    for completion, sequence in zip(completions, found, strict=True):
        at = 0  # the position of the last committed token
        for seen in sequence:
            at += seen.k + 1
            assert (seen.rank >= size) == (completion.token_ids[at] % 4 == 0)
    assert sum(seen.rank >= size for sequence in found for seen in sequence) > 5


def test_a_budget_may_have_more_guesses_than_the_draft_has_tokens(engine: MakeEngine, tmp_path: Path) -> None:
    """Tokens that the draft cannot propose are never among the guesses."""
    sizes = {"max_position_embeddings": 64, "num_hidden_layers": 1}
    tiny.write_model(tmp_path / "target", seed=3, vocab_size=6, **sizes)
    tiny.write_draft_of(tmp_path / "target", tmp_path / "draft", noise=0.3, vocabulary=[0, 2, 3, 4, 5])
    one = engine("ssd", str(tmp_path / "draft"), target=tmp_path / "target", budget=32, fan_out="uniform", fallback="neural")
    prompts = [[i % 6 for i in range(length)] for length in (3, 9, 20)]
    completions, found, _ = decode(one, PARAMS["sampled"], prompts)
    assert found == [replay(sequence, tables("uniform", 4, 32)) for sequence in found]
    missed = [seen for sequence in found for seen in sequence if not seen.hit]
    assert missed and all(seen.rank >= 32 for seen in missed)
    assert all(rank < 5 or rank >= 32 for completion in completions for rank in completion.stats.rank_counts)


# A measured fan-out -----------------------------------------------------------------------------------------------------------


def test_a_measured_fan_out_follows_the_outcomes_seen(engine: MakeEngine) -> None:
    """It is refreshed every few outcomes, and kept from one call to the next."""
    one = engine("ssd", fan_out="measured", fallback="neural")
    _, _, seen = decode(one, PARAMS["sampled"])
    measured = Measured(4, 8)
    expected = measured.tables()
    for outcome in seen:
        measured.observe(outcome.after_hit, outcome.spec_len, outcome.k, outcome.rank)
        if measured.observations % SpeculationCache.REFRESH == 0:
            expected = measured.tables()
    table = cache_of(one).fan_out_table
    assert table.equal(expected)
    assert not table.equal(tables("measured", 4, 8))


@pytest.mark.parametrize("fan_out", ["geometric", "uniform", (2, 2, 0, 0, 4)])
def test_a_fixed_fan_out_does_not_change(engine: MakeEngine, fan_out: Any) -> None:
    one = engine("ssd", fan_out=fan_out)
    decode(one, PARAMS["sampled"])
    table = cache_of(one).fan_out_table
    assert table.equal(tables(fan_out, 4, 8))


# Saguaro sampling -------------------------------------------------------------------------------------------------------------


def test_a_smaller_c_hits_more_often_and_accepts_less(engine: MakeEngine) -> None:
    params = SamplingParams(temperature=1.0, max_new_tokens=100, ignore_eos=True)
    accepted, hit = [], []
    for c in (1.0, 0.3, 0.05):
        found = engine("ssd", fallback="neural", fan_out="uniform", saguaro_c=c).decode(PROMPTS * 3, params)
        hits, look_ups = hits_and_look_ups(found)
        accepted.append(sum(map(accepted_in_all, found)) / sum(c.stats.rounds for c in found))
        hit.append(hits / look_ups)
    assert hit == sorted(hit)
    assert accepted == sorted(accepted, reverse=True)


@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_f_is_the_number_of_tokens_that_are_drawn_less_often(engine: MakeEngine, mode: str) -> None:
    """With the whole vocabulary it would change nothing."""
    drawn = {
        f: tokens_of(engine(mode, fallback="neural", saguaro_c=0.1, saguaro_f=f).decode(PROMPTS, PARAMS["sampled"]))
        for f in (1, 4, 1000)
    }
    plain = tokens_of(engine(mode, fallback="neural").decode(PROMPTS, PARAMS["sampled"]))
    assert drawn[1] != plain != drawn[4] != drawn[1]
    assert drawn[1000] == plain


@pytest.mark.parametrize("lookahead,budget,f", [(4, 8, 2), (4, 16, 4), (1, 1, 1), (3, 64, 17)])
def test_the_default_f_is_one_more_than_a_counts_share_of_the_budget(lookahead: int, budget: int, f: int) -> None:
    assert SpeculationOptions(lookahead=lookahead, budget=budget).top_f == f
    assert SpeculationOptions(lookahead=lookahead, budget=budget, saguaro_f=5).top_f == 5
