"""The choice of a miss's fallback, and the proposals of n-grams, from figures made up by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.cases import i32
from ssd.decoding.drafters.ngram import propose_ngram
from ssd.decoding.fallback import FallbackPolicy
from ssd.decoding.speed_model import SsdModel
from ssd.decoding.state import Branches, DraftTables, SequenceState, Speculation
from ssd.runtime.trace import Span

LIMIT = 64
MANY = 10**15  # observations: enough for the prior not to matter


def measured(
    p_hit: float = 0.8, t_neural: float = 0.3, hit: float = 4.0, neural: float = 3.5, ngram: float = 1.3, name: str = "auto"
) -> FallbackPolicy:
    """A policy after many rounds of one second, with these tokens per round after a hit, a drafted miss and an n-gram miss."""
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


# The choice -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["neural", "ngram"])
@pytest.mark.parametrize("n", [1, 8, 256])
@pytest.mark.parametrize("t_neural", [0.001, 100.0])
def test_a_name_forces_its_fallback(name: str, n: int, t_neural: float) -> None:
    """Whatever the batch and the measurements are."""
    assert FallbackPolicy(name).choose(n) == name
    assert measured(name=name, t_neural=t_neural).choose(n) == name


@pytest.mark.parametrize("n", [1, 8, 4096])
def test_auto_drafts_its_misses_until_it_has_measured(n: int) -> None:
    assert FallbackPolicy().choose(n) == "neural"


@pytest.mark.parametrize("known", ["the time of a fallback", "the rates"])
def test_a_half_measured_auto_still_drafts(known: str) -> None:
    hopeless = measured(t_neural=1000.0)
    if known == "the rates":
        hopeless.t_neural = hopeless.t_neural[: FallbackPolicy.ENOUGH - 1]
    else:
        hopeless.committed = {"hit": [7 * 4, FallbackPolicy.ENOUGH - 1], "neural": [0, 0], "ngram": [0, 0]}
    assert hopeless.choose(256) == "neural"


@given(figures=figures, n=st.integers(1, LIMIT))
def test_auto_drafts_up_to_the_switch_batch_and_takes_n_grams_above(figures: dict[str, float], n: int) -> None:
    fallback = measured(**figures)
    assert fallback.choose(n) == ("neural" if n <= fallback.switch(LIMIT) else "ngram")


def test_a_large_batch_waits_too_often_for_a_draft() -> None:
    """With 80 % hits, a single sequence misses every fifth round, but a batch of 64 has a miss in nearly every round."""
    fallback = measured(p_hit=0.8)
    assert (fallback.choose(1), fallback.choose(LIMIT)) == ("neural", "ngram")


# The switch -------------------------------------------------------------------------------------------------------------------


@given(figures=figures)
def test_the_switch_is_where_the_speed_models_rates_cross(figures: dict[str, float]) -> None:
    """Batches up to the switch decode faster with drafted misses, and larger ones with n-grams."""
    p_hit, hit = figures["p_hit"], figures["hit"]

    def gain(n: int) -> float:
        """The gain from drafting misses, in tokens per second."""
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
def test_fewer_tokens_after_a_drafted_miss_never_raise_the_switch(figures: dict[str, float], factor: float) -> None:
    fewer = figures | {"neural": 1 + factor * (figures["neural"] - 1)}
    assert measured(**fewer).switch(LIMIT) <= measured(**figures).switch(LIMIT)


@given(figures=figures, p_hit=st.floats(0, 0.999))
def test_a_higher_hit_rate_never_raises_the_switch(figures: dict[str, float], p_hit: float) -> None:
    """This holds if a hit gives at least as many tokens as an n-gram. A miss costs its own sequence a draft in any batch. With
    the batch grows the number of hits that wait for a neighbour's miss, and there are such hits only if there are hits."""
    assume(figures["hit"] >= figures["ngram"] and figures["p_hit"] < 0.999)
    low, high = sorted((p_hit, figures["p_hit"]))
    assert measured(**figures | {"p_hit": high}).switch(LIMIT) <= measured(**figures | {"p_hit": low}).switch(LIMIT)


def test_a_batch_that_never_hits_waits_for_nobody() -> None:
    """All of its sequences miss, so if drafting pays for one, it pays for all."""
    assert measured(p_hit=0.0, t_neural=0.3, neural=3.5, ngram=1.3).switch(LIMIT) == LIMIT
    assert measured(p_hit=0.0, t_neural=3.0, neural=3.5, ngram=1.3).switch(LIMIT) == 0


# Learning ---------------------------------------------------------------------------------------------------------------------


def span(name: str, seconds: float) -> Span:
    return Span("draft", name, 0.0, seconds)


def test_a_round_takes_as_long_as_the_slower_of_target_and_draft() -> None:
    fallback = FallbackPolicy()
    fallback.observe_times(span("verify", 0.020), span("speculate", 0.030), None)
    fallback.observe_times(span("verify", 0.040), span("speculate", 0.030), None)
    assert fallback.t_round == pytest.approx([0.030, 0.040])


def test_only_a_drafted_miss_measures_the_time_of_drafting() -> None:
    fallback = FallbackPolicy()
    for miss in (None, span("look up", 0.012)):
        fallback.observe_times(span("verify", 0.020), span("speculate", 0.030), miss)
    assert fallback.t_neural == pytest.approx([0.012])


def test_old_times_are_forgotten() -> None:
    fallback = FallbackPolicy()
    for i in range(200):
        fallback.observe_times(span("verify", float(i)), span("speculate", 0.0), span("look up", float(i)))
    newest = [float(i) for i in range(200 - FallbackPolicy.KEPT, 200)]
    assert fallback.t_round == fallback.t_neural == pytest.approx(newest)


@pytest.mark.parametrize(
    "kind,hit,neural", [("hit", True, True), ("hit", True, False), ("neural", False, True), ("ngram", False, False)]
)
def test_a_rounds_tokens_are_counted_by_the_origin_of_its_speculation(kind: str, hit: bool, neural: bool) -> None:
    fallback = FallbackPolicy()
    for tokens in (3, 4):
        fallback.observe_outcome(hit=hit, neural=neural, tokens=tokens)
    assert (fallback.hits, fallback.look_ups) == (2 * hit, 2)
    assert {name: counts for name, counts in fallback.committed.items() if counts != [0, 0]} == {kind: [7, 2]}


def test_auto_changes_to_n_grams_after_rounds_with_a_slow_draft() -> None:
    """In these rounds drafting a miss takes a hundred times as long as the rest and gains little."""
    fallback, chosen = FallbackPolicy(), []
    for _ in range(20):
        chosen.append(fallback.choose(4))
        neural = chosen[-1] == "neural"
        fallback.observe_times(span("verify", 0.01), span("speculate", 0.01), span("look up", 1.0) if neural else None)
        for hit in (True, True, True, False):
            fallback.observe_outcome(hit=hit, neural=neural, tokens=2)
    assert chosen == ["neural"] * FallbackPolicy.ENOUGH + ["ngram"] * (20 - FallbackPolicy.ENOUGH)


# Proposing n-grams ------------------------------------------------------------------------------------------------------------


def sequences(*rows: list[int]) -> DraftTables:
    """Sequences of these tokens, all of them missed, with room for three proposals."""
    cpu, slots = torch.device("cpu"), len(rows)
    state, speculation = SequenceState.allocate(slots, 12, 1, (), cpu), Speculation.allocate(slots, 3, cpu)
    for slot, row in enumerate(rows):
        state.tokens[slot, : len(row)] = i32(row)
        state.length[slot] = len(row) - 1
    speculation.length.fill_(3)
    branches = Branches.allocate(slots, 0, 3, 0, cpu)
    branches.missed.fill_(1)
    return DraftTables(state, state, speculation, branches)


@pytest.fixture
def speculation() -> Speculation:
    """Four slots after `propose_ngram`: a hit, a miss whose match two tokens follow, one without a match, and one with room for
    only one token."""
    tables = sequences([4, 4, 4, 4], [10, 11, 10], [20, 21, 22], [30, 31, 32, 33, 30])
    before = tables.speculation
    before.tokens.copy_(i32([[1, 2, 3]] + [[0, 0, 0]] * 3))
    before.length.copy_(i32([3, 3, 3, 1]))
    before.q_address.copy_(i32([5, 8, 8, 8]))
    tables.branches.missed[0] = 0
    propose_ngram(tables)
    return before


def test_a_hit_keeps_its_branch(speculation: Speculation) -> None:
    assert speculation.tokens[0].tolist() == [1, 2, 3]
    assert (int(speculation.length[0]), int(speculation.q_address[0])) == (3, 5)


def test_a_miss_gets_the_tokens_that_followed_the_match(speculation: Speculation) -> None:
    assert speculation.tokens[1, :2].tolist() == [11, 10]
    assert int(speculation.tokens[3, 0]) == 31


def test_an_n_gram_is_cut_to_its_length_and_to_the_room_left(speculation: Speculation) -> None:
    assert speculation.length[1:].tolist() == [2, 0, 1]


def test_an_n_gram_is_marked_as_not_drawn(speculation: Speculation) -> None:
    assert speculation.q_address[1:].tolist() == [-1, -1, -1]


def test_the_whole_sequence_is_searched_including_its_last_token() -> None:
    tables = sequences([7, 5, 6, 7], [5, 6, 7, 8])
    propose_ngram(tables)
    assert tables.speculation.tokens[0].tolist() == [5, 6, 7]
    assert tables.speculation.length.tolist() == [3, 0]


def test_n_grams_follow_the_longest_earlier_match_of_the_ending() -> None:
    """In [1 2 3 9 | 2 3 8 | 1 2 3] the ending 1 2 3 occurs once before. In [2 3 8 | 2 3 9 | 2 3] the ending occurs twice, and
    the later one is used. 7 does not occur before."""
    tables = sequences([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], [2, 3, 8, 2, 3, 9, 2, 3], [1, 2, 7])
    propose_ngram(tables)
    found = zip(tables.speculation.tokens.tolist(), tables.speculation.length.tolist(), strict=True)
    assert [row[:count] for row, count in found] == [[9, 2, 3], [9, 2, 3], []]
