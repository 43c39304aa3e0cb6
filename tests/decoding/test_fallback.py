"""Which fallback a miss gets, and what n-gram proposes: from figures made up by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.cases import i32
from ssd import ops
from ssd.decoding.drafters.ngram import propose_ngram
from ssd.decoding.fallback import FallbackPolicy
from ssd.decoding.speed_model import SsdModel
from ssd.decoding.state import SequenceState, Speculation
from ssd.runtime.trace import Span

LIMIT = 64
MANY = 10**15  # observations, so that no prior is left


def measured(
    p_hit: float = 0.8, t_neural: float = 0.3, hit: float = 4.0, neural: float = 3.5, ngram: float = 1.3, name: str = "auto"
) -> FallbackPolicy:
    """After many rounds of one second, with these tokens a round behind a hit, a drafted miss and an n-gram one."""
    tokens = {"hit": hit, "neural": neural, "ngram": ngram}
    rounds = {"hit": p_hit * MANY, "neural": (1 - p_hit) * MANY / 2, "ngram": (1 - p_hit) * MANY / 2}
    return FallbackPolicy(
        name,
        t_round=[1.0] * FallbackPolicy.KEPT,
        t_neural=[t_neural] * FallbackPolicy.KEPT,
        committed={kind: [round(rounds[kind] * each), round(rounds[kind])] for kind, each in tokens.items()},
    )


figures = st.fixed_dictionaries(
    {
        "p_hit": st.floats(0, 1),
        "t_neural": st.floats(0.001, 3),
        "hit": st.floats(1, 6),
        "neural": st.floats(1, 6),
        "ngram": st.floats(1, 6),
    }
)


# The choice ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["neural", "ngram"])
@pytest.mark.parametrize("n", [1, 8, 256])
@pytest.mark.parametrize("t_neural", [0.001, 100.0])
def test_a_name_forces_its_fallback(name: str, n: int, t_neural: float) -> None:
    """Whatever the batch, and whatever was measured."""
    assert FallbackPolicy(name).choose(n) == name
    assert measured(name=name, t_neural=t_neural).choose(n) == name


@pytest.mark.parametrize("n", [1, 8, 4096])
def test_auto_drafts_its_misses_until_it_has_measured(n: int) -> None:
    assert FallbackPolicy().choose(n) == "neural"


@pytest.mark.parametrize("known", ["the time of a fallback", "the rates"])
def test_half_a_measurement_is_none(known: str) -> None:
    hopeless = measured(t_neural=1000.0)
    if known == "the rates":
        hopeless.t_neural = hopeless.t_neural[: FallbackPolicy.ENOUGH - 1]
    else:
        hopeless.committed = {"hit": [7 * 4, FallbackPolicy.ENOUGH - 1], "neural": [0, 0], "ngram": [0, 0]}
    assert hopeless.choose(256) == "neural"


@given(figures=figures, n=st.integers(1, LIMIT))
def test_auto_drafts_up_to_the_switch_and_takes_n_grams_beyond(figures: dict[str, float], n: int) -> None:
    fallback = measured(**figures)
    assert fallback.choose(n) == ("neural" if n <= fallback.switch(LIMIT) else "ngram")


def test_a_large_batch_waits_too_often_for_a_draft() -> None:
    """At 80 % hits one sequence misses every fifth round, and one of 64 in nearly every round."""
    fallback = measured(p_hit=0.8)
    assert (fallback.choose(1), fallback.choose(LIMIT)) == ("neural", "ngram")


# The switch ---------------------------------------------------------------------------------------------------------------------


@given(figures=figures)
def test_the_switch_is_where_the_speed_model_s_rates_cross(figures: dict[str, float]) -> None:
    """Every batch up to it decodes faster with drafted misses, and every larger one with n-grams."""
    p_hit, hit = figures["p_hit"], figures["hit"]

    def gain(n: int) -> float:
        """What drafting a miss brings, in tokens a second."""
        drafted = SsdModel(p_hit, hit, figures["neural"], 1.0, 0.0, figures["t_neural"], batch=n).tokens_per_s()
        return drafted - SsdModel(p_hit, hit, figures["ngram"], 1.0, 0.0, 0.0, batch=n).tokens_per_s()

    gains = [gain(n) for n in range(1, LIMIT + 1)]
    assume(all(abs(each) > 1e-6 for each in gains))
    switch = measured(**figures).switch(LIMIT)
    assert [each > 0 for each in gains] == [n <= switch for n in range(1, LIMIT + 1)]


@given(figures=figures, factor=st.floats(1, 10))
def test_a_slower_draft_never_raises_the_switch(figures: dict[str, float], factor: float) -> None:
    slower = figures | {"t_neural": factor * figures["t_neural"]}
    assert measured(**slower).switch(LIMIT) <= measured(**figures).switch(LIMIT)


@given(figures=figures, factor=st.floats(0, 1))
def test_fewer_tokens_behind_a_drafted_miss_never_raise_the_switch(figures: dict[str, float], factor: float) -> None:
    fewer = figures | {"neural": 1 + factor * (figures["neural"] - 1)}
    assert measured(**fewer).switch(LIMIT) <= measured(**figures).switch(LIMIT)


@given(figures=figures, p_hit=st.floats(0, 0.999))
def test_a_higher_hit_rate_never_raises_the_switch(figures: dict[str, float], p_hit: float) -> None:
    """Where a hit brings no less than an n-gram does. A miss costs its own sequence a draft, whatever its neighbours do; what grows
    with the batch are the hits that wait for a neighbour's miss, and those are lost only where there are hits."""
    assume(figures["hit"] >= figures["ngram"] and figures["p_hit"] < 0.999)
    low, high = sorted((p_hit, figures["p_hit"]))
    assert measured(**figures | {"p_hit": high}).switch(LIMIT) <= measured(**figures | {"p_hit": low}).switch(LIMIT)


def test_a_batch_that_never_hits_waits_for_nobody() -> None:
    """All of it misses: what pays for one sequence pays for all."""
    assert measured(p_hit=0.0, t_neural=0.3, neural=3.5, ngram=1.3).switch(LIMIT) == LIMIT
    assert measured(p_hit=0.0, t_neural=3.0, neural=3.5, ngram=1.3).switch(LIMIT) == 0


# What it learns from ------------------------------------------------------------------------------------------------------------


def span(name: str, seconds: float) -> Span:
    return Span("draft", name, 0.0, seconds)


def test_a_round_takes_as_long_as_the_slower_of_its_two_sides() -> None:
    fallback = FallbackPolicy()
    fallback.times(span("verify", 0.020), span("speculate", 0.030), None)
    fallback.times(span("verify", 0.040), span("speculate", 0.030), None)
    assert fallback.t_round == pytest.approx([0.030, 0.040])


def test_only_a_drafted_miss_says_what_drafting_takes() -> None:
    fallback = FallbackPolicy()
    for miss in (None, span("look up", 0.012)):
        fallback.times(span("verify", 0.020), span("speculate", 0.030), miss)
    assert fallback.t_neural == pytest.approx([0.012])


def test_old_times_are_forgotten() -> None:
    fallback = FallbackPolicy()
    for i in range(200):
        fallback.times(span("verify", float(i)), span("speculate", 0.0), span("look up", float(i)))
    newest = [float(i) for i in range(200 - FallbackPolicy.KEPT, 200)]
    assert fallback.t_round == fallback.t_neural == pytest.approx(newest)


@pytest.mark.parametrize(
    "kind,hit,neural", [("hit", True, True), ("hit", True, False), ("neural", False, True), ("ngram", False, False)]
)
def test_a_round_s_tokens_count_for_where_its_speculation_came_from(kind: str, hit: bool, neural: bool) -> None:
    fallback = FallbackPolicy()
    for tokens in (3, 4):
        fallback.outcome(hit=hit, neural=neural, tokens=tokens)
    assert (fallback.hits, fallback.look_ups) == (2 * hit, 2)
    assert {name: counts for name, counts in fallback.committed.items() if counts != [0, 0]} == {kind: [7, 2]}


def test_auto_leaves_the_draft_for_n_grams_once_rounds_have_shown_that_it_is_too_slow() -> None:
    """Rounds in which drafting a miss takes a hundred times as long as the rest and brings little."""
    fallback, chosen = FallbackPolicy(), []
    for _ in range(20):
        chosen.append(fallback.choose(4))
        neural = chosen[-1] == "neural"
        fallback.times(span("verify", 0.01), span("speculate", 0.01), span("look up", 1.0) if neural else None)
        for hit in (True, True, True, False):
            fallback.outcome(hit=hit, neural=neural, tokens=2)
    assert chosen == ["neural"] * FallbackPolicy.ENOUGH + ["ngram"] * (20 - FallbackPolicy.ENOUGH)


# Proposing n-grams --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def speculation(monkeypatch: pytest.MonkeyPatch) -> Speculation:
    """Four slots before and after `propose_ngram`: a hit, two misses, and a miss with room for one token only. An n-gram of slot i is
    [10·i, 10·i + 1, 10·i + 2], of which there are 3, 2, 0 and 3."""
    state = SequenceState.allocate(4, 8, 1, (), torch.device("cpu"))
    before = Speculation.allocate(4, 3, torch.device("cpu"))
    before.tokens.copy_(i32([[1, 2, 3]] + [[0, 0, 0]] * 3))
    before.length.copy_(i32([3, 3, 3, 1]))
    before.hit.copy_(torch.tensor([1, 0, 0, 0]))
    before.q_address.copy_(i32([5, 8, 8, 8]))
    found = i32([[10 * i, 10 * i + 1, 10 * i + 2] for i in range(4)]), i32([3, 2, 0, 3])
    monkeypatch.setattr(
        "ssd.decoding.drafters.ngram.ops", SimpleNamespace(ngram_propose=lambda tokens, length, lookahead: found)
    )
    propose_ngram(state, before)
    return before


def test_a_hit_keeps_its_branch(speculation: Speculation) -> None:
    assert speculation.tokens[0].tolist() == [1, 2, 3]
    assert (int(speculation.length[0]), int(speculation.q_address[0])) == (3, 5)


def test_a_miss_gets_what_followed_before(speculation: Speculation) -> None:
    assert speculation.tokens[1, :2].tolist() == [10, 11]


def test_a_miss_is_proposed_as_much_as_was_found_and_there_is_room_for(speculation: Speculation) -> None:
    assert speculation.length[1:].tolist() == [2, 0, 1]


def test_what_was_not_drawn_is_not_verified_as_if_it_were(speculation: Speculation) -> None:
    assert speculation.q_address[1:].tolist() == [-1, -1, -1]


def test_the_whole_sequence_is_searched_and_the_last_token_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokens` is handed over as it is, and `length` is where the last committed token stands."""
    asked = []

    def note(tokens: torch.Tensor, length: torch.Tensor, lookahead: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((tokens, length, lookahead))
        return torch.zeros(1, lookahead, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    monkeypatch.setattr("ssd.decoding.drafters.ngram.ops", SimpleNamespace(ngram_propose=note))
    state = SequenceState.allocate(1, 8, 1, (), torch.device("cpu"))
    propose_ngram(state, Speculation.allocate(1, 3, torch.device("cpu")))
    ((tokens, length, lookahead),) = asked
    assert tokens is state.tokens and length is state.length and lookahead == 3


def test_n_grams_are_what_followed_the_longest_earlier_match_of_the_ending() -> None:
    """Of [1 2 3 9 | 2 3 8 | 1 2 3] the ending 1 2 3 stood once before; of [2 3 8 | 2 3 9 | 2 3] the ending stood twice, and the later one
    counts; 7 never stood before."""
    rows = [[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], [2, 3, 8, 2, 3, 9, 2, 3], [1, 2, 7]]
    state = SequenceState.allocate(3, 12, 1, (), torch.device("cpu"))
    for slot, row in enumerate(rows):
        state.tokens[slot, : len(row)] = i32(row)
        state.length[slot] = len(row) - 1
    tokens, length = ops.ngram_propose(state.tokens, state.length, 3)
    found = [row[:count] for row, count in zip(tokens.tolist(), length.tolist(), strict=True)]
    assert found == [[9, 2, 3], [9, 2, 3], []]
