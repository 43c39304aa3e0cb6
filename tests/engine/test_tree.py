"""Trees of proposals in the engine: greedy tokens are the target's, a chain is a tree, and edge cases are handled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import tiny
from engine.cases import (
    MakeEngine,
    Models,
    accepted_in_all,
    as_asked,
    autoregressive_tokens,
    random_prompt,
    random_prompts,
    tokens_of,
    was_cut_in_a_round,
)
from ssd import Completion, SamplingParams, ops
from ssd.decoding.tree import Tree

# Lengths: one token; around one page (16) and two; around a prefill chunk (256). There are more prompts than slots.
PROMPTS = random_prompts((1, 17, 256, 15, 33, 2, 257, 31, 16))
LENGTHS = (48, 37, 1, 40, 31, 2, 20, 3, 44)
GREEDY = [SamplingParams(max_new_tokens=n) for n in LENGTHS]
SAMPLED = [
    SamplingParams(temperature=1.0, max_new_tokens=n, seed=i)
    if i % 2
    else SamplingParams(temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=n, seed=i)
    for i, n in enumerate(LENGTHS)
]


@dataclass(frozen=True)
class Case:
    tree: tuple[int, ...]
    draft: str = "draft"
    batch: int = 3
    dtype: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.tree))} {self.draft} batch={self.batch} {self.dtype} threads={self.threads}"


CASES = [
    Case((2, 2)),
    Case((2, 2), batch=1, dtype="bfloat16"),
    Case((3, 2, 1, 1), batch=8),
    Case((3, 2, 1, 1), "trimmed", dtype="bfloat16"),
    Case((4, 1, 1), "self:2", batch=8, dtype="bfloat16"),
    Case((1, 3, 2), "self:2", batch=1),
    Case((1, 1, 1, 1, 1), "trimmed", batch=8),
    Case((5,), "self:1"),
    Case((7, 7), "trimmed", batch=3),
    Case((63,), batch=8),
    Case((2, 1, 2), "self:3"),
    Case((2, 2, 1), "draft", batch=8, threads=2),
]


def decode(
    engine: MakeEngine, case: Case, params: Sequence[SamplingParams], prompts: list[list[int]] = PROMPTS, **options: Any
) -> list[Completion]:
    options = {"max_batch": case.batch, "dtype": case.dtype, "threads": case.threads} | options
    return as_asked(engine("sd", case.draft, tree=case.tree, **options).decode(prompts, params), "sd")


@pytest.fixture(scope="module")
def autoregressive(models: Models) -> dict[str, list[list[int]]]:
    """The tokens of PROMPTS with GREEDY, by dtype."""
    return autoregressive_tokens(models, PROMPTS, GREEDY)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_decoding_with_a_tree_equals_autoregressive(
    engine: MakeEngine, autoregressive: dict[str, list[list[int]]], case: Case
) -> None:
    found = decode(engine, case, GREEDY)
    assert tokens_of(found) == autoregressive[case.dtype]
    assert sum(map(accepted_in_all, found)) > 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampled_tokens_do_not_depend_on_the_batch(engine: MakeEngine, case: Case) -> None:
    alone = decode(engine, case, SAMPLED, max_batch=1, threads=1)
    together = decode(engine, case, SAMPLED, max_batch=8 if case.batch == 1 else case.batch)
    assert tokens_of(together) == tokens_of(alone)
    assert sum(map(accepted_in_all, together)) > 0


# A chain is a tree ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("draft,dtype", [("draft", "float32"), ("trimmed", "bfloat16")])
@pytest.mark.parametrize("saguaro_c", [1.0, 0.3])
def test_a_tree_with_one_child_per_node_equals_a_chain(
    engine: MakeEngine, params: list[SamplingParams], draft: str, dtype: str, saguaro_c: float
) -> None:
    """The rounds are the same too: the same proposals, and the same ones accepted."""
    options = {"dtype": dtype, "max_batch": 3, "saguaro_c": saguaro_c, "saguaro_f": 3}
    chain = engine("sd", draft, lookahead=3, **options).decode(PROMPTS, params)
    tree = engine("sd", draft, tree=(1, 1, 1), **options).decode(PROMPTS, params)
    assert tokens_of(tree) == tokens_of(chain)
    assert [c.stats.accepted_at for c in tree] == [c.stats.accepted_at for c in chain]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("draft,dtype", [("draft", "float32"), ("trimmed", "bfloat16")])
def test_a_chains_shortcuts_change_no_token_and_no_round(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, params: list[SamplingParams], draft: str, dtype: str
) -> None:
    """lookahead=4 and tree=(1, 1, 1, 1) are one shape; without its short cuts it has a suffix, parents and moves like any tree."""
    options = {"dtype": dtype, "max_batch": 3}

    def figures(**shape: Any) -> list[Any]:
        found = engine("sd", draft, **shape, **options).decode(PROMPTS, params)
        return [(c.token_ids, c.stats.rounds, c.stats.accepted_at, c.stats.proposed_counts) for c in found]

    chain = figures(lookahead=4)
    assert figures(tree=(1, 1, 1, 1)) == chain
    moves: list[Any] = []
    move_kv = ops.move_kv
    monkeypatch.setattr(ops, "move_kv", lambda *arguments: (moves.append(arguments), move_kv(*arguments)))
    monkeypatch.setattr(Tree, "is_chain", False)
    assert figures(tree=(1, 1, 1, 1)) == chain
    assert moves


def test_more_children_need_fewer_rounds(engine: MakeEngine) -> None:
    """In greedy decoding no sequence needs more rounds, and all together need fewer, because a second child may be right."""
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    rounds = [
        [completion.stats.rounds for completion in engine("sd", tree=tree).decode(PROMPTS, params)]
        for tree in ((1, 1, 1), (3, 1, 1), (3, 3, 3))
    ]
    for narrow, wide in pairwise(rounds):
        assert all(fewer <= more for more, fewer in zip(narrow, wide, strict=True))
        assert sum(wide) < sum(narrow)


@pytest.mark.parametrize("tree", [(2, 2, 2), (1, 3, 1)])
def test_proposals_of_the_target_itself_are_accepted_to_the_leaves(engine: MakeEngine, tree: tuple[int, ...]) -> None:
    """In every round. So the draft's own K/V is made contiguous too; otherwise the second round's proposals would differ."""
    stats = engine("sd", "self:3", tree=tree).decode(PROMPTS[0], SamplingParams(max_new_tokens=41, ignore_eos=True)).stats
    assert (stats.accepted_per_round, stats.rounds) == (3.0, 10)


# Mistakes that these tests must find ------------------------------------------------------------------------------------------


def test_the_tests_detect_an_accepted_path_that_is_not_moved(
    engine: MakeEngine, autoregressive: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tree, "compact", lambda *arguments: None)
    assert tokens_of(decode(engine, CASES[0], GREEDY)) != autoregressive["float32"]


def test_the_tests_detect_a_drafts_path_that_is_not_moved(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine("sd", "self:3", tree=(2, 2, 2))
    monkeypatch.setattr(one.core.loop.drafter, "compact", lambda n, path: None)  # type: ignore[union-attr]
    assert one.decode(PROMPTS[0], SamplingParams(max_new_tokens=41, ignore_eos=True)).stats.rounds > 10


# Edges ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [(2, 2, 1), (4,), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7])
def test_a_sequence_has_exactly_the_requested_number_of_tokens(engine: MakeEngine, tree: tuple[int, ...], tokens: int) -> None:
    """The last round's tree is cut if there is no room for its leaves."""
    found = engine("sd", tree=tree).decode(PROMPTS[:3], SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    assert [len(c.token_ids) for c in found] == [tokens] * 3
    assert {c.finish_reason for c in found} == {"length"}


@pytest.mark.parametrize("tree", [(3, 2, 1), (63,)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_sequence_may_end_at_the_end_of_the_context(engine: MakeEngine, tree: tuple[int, ...], temperature: float) -> None:
    """Nodes beyond the context are stored in pages that no sequence owns."""
    context = tiny.SIZES["max_position_embeddings"]
    prompts = [random_prompt(context - n) for n in (1, 2, 9, 40)]
    params = [
        SamplingParams(temperature=temperature, max_new_tokens=context - len(prompt), ignore_eos=True, seed=3)
        for prompt in prompts
    ]
    found = engine("sd", tree=tree, max_batch=3).decode(prompts, params)
    expected = engine("ar") if temperature == 0 else engine("sd", tree=tree, max_batch=1)
    assert tokens_of(found) == tokens_of(expected.decode(prompts, params))
    assert not any(c.degraded for c in found)


def test_the_lookahead_is_the_trees_depth(engine: MakeEngine) -> None:
    """Whatever the option lookahead is, in a context with room for only one more position."""
    one = engine("sd", tree=(2, 2, 1), lookahead=50, max_context=64)
    assert one.options.speculation_options.lookahead == 3
    assert max(one.decode(PROMPTS[1], SamplingParams(max_new_tokens=47)).stats.proposed_counts) == 2 + 4 + 4


@pytest.mark.parametrize("batch", [1, 5])
def test_a_stop_string_ends_a_sequence_in_the_middle_of_a_round(engine: MakeEngine, batch: int) -> None:
    texts = [c.text for c in engine("ar").decode(PROMPTS, SamplingParams(max_new_tokens=40))]
    ends = [
        SamplingParams(max_new_tokens=40, stop=(text[i + 4 : i + 7],) if text[i + 4 :] else ()) for i, text in enumerate(texts)
    ]
    expected = engine("ar").decode(PROMPTS, ends)
    found = engine("sd", tree=(3, 2, 1), max_batch=batch).decode(PROMPTS, ends)
    assert [(c.token_ids, c.text, c.finish_reason) for c in found] == [(c.token_ids, c.text, c.finish_reason) for c in expected]
    assert any(c.finish_reason == "stop" and was_cut_in_a_round(c) for c in found)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_of_sequence_token_ends_a_sequence_in_the_middle_of_a_round(
    engine: MakeEngine, ending: str, temperature: float
) -> None:
    """Every eighth token of this target ends a sequence, so the draft proposes such tokens."""
    params = SamplingParams(temperature=temperature, max_new_tokens=64, seed=1)
    found = engine("sd", "self:2", target=ending, tree=(3, 2, 1), max_batch=4).decode(PROMPTS, params)
    ended = [c for c in found if c.finish_reason == "eos"]
    assert all(c.token_ids[-1] % 8 == 0 and not any(t % 8 == 0 for t in c.token_ids[:-1]) for c in ended)
    assert any(was_cut_in_a_round(c) for c in ended)
    if temperature == 0:
        assert tokens_of(found) == tokens_of(engine("ar", target=ending).decode(PROMPTS, params))


@pytest.mark.parametrize(
    "processing",
    [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.3}],
)
@pytest.mark.parametrize("draft", ["same", "smaller"])
def test_a_node_has_no_more_children_than_its_draft_has_tokens(
    engine: MakeEngine, tmp_path: Path, processing: dict[str, Any], draft: str
) -> None:
    """Eight children with a vocabulary of six or four, or with the few tokens that processing keeps: the other nodes are
    missing."""
    sizes = {"max_position_embeddings": 40, "num_hidden_layers": 1}
    tiny.write_model(tmp_path / "target", seed=3, vocab_size=6, **sizes)
    tiny.write_draft_of(tmp_path / "target", tmp_path / "same", noise=0.3)
    tiny.write_model(tmp_path / "smaller", seed=3, vocab_size=4, **sizes)
    prompts = [[i % 6 for i in range(n)] for n in (1, 39, 20, 5, 33)]
    params = [SamplingParams(**processing, max_new_tokens=40 - len(prompt), seed=1) for prompt in prompts]
    model = {"target": tmp_path / "target"}
    found = engine("sd", str(tmp_path / draft), tree=(8, 2), max_batch=3, **model).decode(prompts, params)
    assert not any(completion.degraded for completion in found)
    if processing["temperature"] == 0 or processing.get("top_k") == 1:
        assert tokens_of(found) == tokens_of(engine("ar", **model).decode(prompts, params))


def test_a_node_with_every_token_as_a_child_never_rejects_them_all(engine: MakeEngine, tmp_path: Path) -> None:
    """The children are drawn without replacement and each rejected one is removed, so the last one is accepted for certain."""
    sizes = {"max_position_embeddings": 40, "num_hidden_layers": 1}
    tiny.write_model(tmp_path / "target", seed=3, vocab_size=6, **sizes)
    tiny.write_draft_of(tmp_path / "target", tmp_path / "draft", noise=0.8)
    params = SamplingParams(temperature=1.0, max_new_tokens=36)
    for completion in engine("sd", str(tmp_path / "draft"), target=tmp_path / "target", tree=(6,)).decode(
        [[1, 2]] * 20, params
    ):
        stats = completion.stats
        assert stats.accepted_at == [stats.rounds - stats.proposed_counts.get(0, 0)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probabilities_belong_to_the_node_that_decided(engine: MakeEngine, temperature: float) -> None:
    """They equal the target's log-probabilities when each token is decoded alone."""
    params = SamplingParams(temperature=temperature, max_new_tokens=12, ignore_eos=True, seed=4, logprobs=3)
    found = engine("sd", tree=(2, 2, 1)).decode(PROMPTS[:3], params)
    assert all(completion.stats.rounds < 11 for completion in found)
    texts = [[*prompt, *c.token_ids[:i]] for prompt, c in zip(PROMPTS, found, strict=False) for i in range(12)]
    alone = engine("ar").decode(texts, SamplingParams(max_new_tokens=1, logprobs=3))
    logprobs = [each for completion in found for each in completion.logprobs or ()]
    for shown, expected in zip(logprobs, (each for c in alone for each in c.logprobs or ()), strict=True):
        assert {token: shown[token] for token in expected} == pytest.approx(expected, abs=1e-5)


def test_greedy_and_sampled_requests_share_a_batch(engine: MakeEngine) -> None:
    mixed = [GREEDY[i] if i % 2 == 0 else SAMPLED[i] for i in range(len(PROMPTS))]
    found = tokens_of(engine("sd", tree=(2, 2)).decode(PROMPTS, mixed))
    assert found[::2] == tokens_of(engine("ar").decode(PROMPTS[::2], mixed[::2]))
    assert found[1::2] == tokens_of(engine("sd", tree=(2, 2), max_batch=1).decode(PROMPTS[1::2], mixed[1::2]))


# Stats ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stats_count_proposed_nodes_and_accepted_tokens(engine: MakeEngine, temperature: float) -> None:
    """Every round has a whole tree, except the last ones, which have no room for its leaves."""
    params = SamplingParams(temperature=temperature, max_new_tokens=41, ignore_eos=True)
    for completion in engine("sd", tree=(3, 2)).decode(PROMPTS, params):
        stats = completion.stats
        assert set(stats.proposed_counts) <= {0, 3, 9}
        assert sum(stats.proposed_counts.values()) == stats.rounds
        assert sum(stats.accepted_at) == accepted_in_all(completion) == 40 - stats.rounds
        assert len(stats.accepted_at) <= 2
        assert stats.acceptance_rate == pytest.approx(
            sum(stats.accepted_at) / sum(nodes * rounds for nodes, rounds in stats.proposed_counts.items())
        )
        assert (stats.hits_per_k, stats.rank_counts, stats.branches_unused) == ({}, {}, 0)


def test_mode_auto_with_a_tree_is_speculative_decoding(engine: MakeEngine) -> None:
    assert engine("auto", "draft", tree=(2, 2)).mode == "sd"
