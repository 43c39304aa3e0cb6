"""A draft that was trained for fewer tokens than the target: it proposes nothing beyond its context, and no token changes.

The draft's context is 32 tokens, and prompts end before it, at it and after it, so that rounds meet its end at every offset. A
sequence of n + 1 tokens, the last of which is at position n, has room for 32 - n proposals: the draft's last row is then at
position 31.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from engine.cases import FIXED, MakeCaptured, MakeEngine, Models, as_asked, random_prompt, random_prompts, tokens_of
from engine.test_captured import figures
from ssd import Engine, SamplingParams
from ssd.decoding.speculative import Speculative
from ssd.decoding.ssd import SpeculativeSpeculative

pytestmark = pytest.mark.usefixtures("eager_rounds")

CONTEXT = 32
PROMPTS = random_prompts(tuple(range(21, 36)), seed=3)
NEW = 20
GREEDY = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
SAMPLED = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, temperature=1.0, seed=i) for i in range(len(PROMPTS))]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("sd", {}),
    "sd, tree": ("sd", {"tree": (2, 2, 1)}),
    "ssd": ("ssd", {"fallback": "neural"}),
    "ssd, n-gram": ("ssd", {"fallback": "ngram"}),
    "ssd, auto": ("ssd", {"fallback": "auto"}),
    "ssd, every outcome guessed": ("ssd", {"fallback": "neural", "lookahead": 2, "budget": 60, "fan_out": "uniform"}),
}

MakeBrief = Callable[..., Engine]


@pytest.fixture(scope="module")
def drafts(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Gives the path of the target's draft with this context."""
    root = tmp_path_factory.mktemp("brief")

    def path(context: int) -> str:
        if not (root / str(context)).exists():
            tiny.write_draft_of(Path(models.target), root / str(context), noise=0.07, context=context)
        return str(root / str(context))

    return path


@pytest.fixture
def brief(engine: MakeEngine, drafts: Callable[[int], str]) -> MakeBrief:
    """Builds engines with a draft that was trained for `context` tokens."""

    def build(mode: str, context: int = CONTEXT, **options: Any) -> Engine:
        with pytest.warns(RuntimeWarning, match="the draft was trained for"):
            return engine(mode, drafts(context), **options)

    return build


@pytest.fixture(scope="module")
def autoregressive(models: Models) -> list[list[int]]:
    with Engine(models.target, None, "ar", dtype="float32", max_batch=1, threads=1) as engine:
        return tokens_of(engine.decode(PROMPTS, GREEDY))


def watch_positions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which each forward pass of the draft adds its last position."""
    assert isinstance(engine.core.loop, (Speculative, SpeculativeSpeculative))
    model, positions = engine.core.loop.drafter.model, []  # type: ignore[attr-defined]
    forward = model.forward

    def run(rows: Any, *arguments: Any) -> Any:
        positions.append(int(rows.positions.max()))
        return forward(rows, *arguments)

    monkeypatch.setattr(model, "forward", run)
    return positions


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_the_targets_across_the_end_of_the_context(
    brief: MakeBrief, autoregressive: list[list[int]], case: str, batch: int
) -> None:
    mode, options = CASES[case]
    found = as_asked(brief(mode, max_batch=batch, **options).decode(PROMPTS, GREEDY), mode)
    assert tokens_of(found) == autoregressive
    assert sum(completion.stats.accepted_per_round for completion in found) > 0


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_proposed_beyond_the_context(brief: MakeBrief, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    mode, options = CASES[case]
    built = brief(mode, max_batch=4, **options)
    positions = watch_positions(built, monkeypatch)
    found = built.decode(PROMPTS, GREEDY)
    assert 0 < max(positions) < CONTEXT + 10  # nobody reads the rows of proposals that were cut
    for prompt, completion in zip(PROMPTS, found, strict=True):
        # Rounds begin at position len(prompt). From position 32 on each commits one token, and the last token is at
        # len(prompt) + 19. The first of these rounds may begin at 33: after one that accepted all its proposals.
        beyond = len(prompt) + NEW - 1 - max(CONTEXT, len(prompt)) - (len(prompt) < CONTEXT)
        assert completion.stats.proposed_counts.get(0, 0) >= beyond


@pytest.mark.parametrize("case", [case for case in CASES if "n-gram" not in case and "auto" not in case])
def test_a_round_proposes_as_much_as_the_context_has_room_for(brief: MakeBrief, case: str) -> None:
    """One round of a prompt of 32 - n tokens proposes n tokens at most, by all n of which the text may grow."""
    mode, options = CASES[case]
    sizes = {"sd": 4, "sd, tree": 3, "ssd": 4}.get(case, 2)  # levels of a speculation
    within = {0: 0, 1: 2, 2: 6, 3: 10}  # nodes of the tree (2, 2, 1) down to each level
    for room in range(6):
        one = brief(mode, **options)
        (found,) = one.decode([random_prompt(CONTEXT - room)], SamplingParams(max_new_tokens=8, ignore_eos=True))
        first = min(room, sizes)
        expected = within[first] if case == "sd, tree" else first
        assert max(found.stats.proposed_counts) == expected


@pytest.mark.parametrize("case", ["ssd", "ssd, every outcome guessed"])
def test_sampled_ssd_equals_sampled_sd_across_the_end_of_the_context(brief: MakeBrief, case: str) -> None:
    _, options = CASES[case]
    expected = tokens_of(brief("sd", max_batch=1, **options).decode(PROMPTS, SAMPLED))
    for batch in (1, 4):
        found = as_asked(brief("ssd", max_batch=batch, **options).decode(PROMPTS, SAMPLED), "ssd")
        assert tokens_of(found) == expected
    assert sum(completion.stats.hit_rate or 0 for completion in found) > 0


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_beyond_the_context_is_decoded_as_without_a_draft(
    engine: MakeEngine, brief: MakeBrief, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Sampled tokens are the target's own too, and the draft does not run: not for the prompt, and not for a round."""
    mode, options = CASES[case]
    prompts = random_prompts((CONTEXT, CONTEXT + 1, 300))
    built = brief(mode, max_batch=2, **options)
    positions = watch_positions(built, monkeypatch)
    found = as_asked(built.decode(prompts, SAMPLED[:3]), mode)
    assert positions == []
    assert tokens_of(found) == tokens_of(engine("ar").decode(prompts, SAMPLED[:3]))
    for completion in found:
        stats = completion.stats
        assert (stats.proposed_counts, stats.acceptance_rate, stats.hits_per_k) == ({0: NEW - 1}, None, {})
        assert (stats.branches_unused, stats.rank_counts, stats.t_fallback_ms) == (0, {}, None)


def test_a_prompt_that_just_fits_gets_one_proposal(brief: MakeBrief, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft reads 31 tokens and the first new one, at its last position."""
    built = brief("sd")
    positions = watch_positions(built, monkeypatch)
    (found,) = built.decode([random_prompt(CONTEXT - 1)], GREEDY)
    assert found.stats.proposed_counts[1] == 1 and set(found.stats.proposed_counts) == {0, 1}
    assert positions[:2] == [CONTEXT - 2, CONTEXT - 1]  # the prompt, then the first round


@pytest.mark.parametrize("params", [GREEDY, SAMPLED[0]], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", ["sd", "sd, tree", "ssd"])
def test_a_sequence_beyond_the_context_does_not_harm_its_batch_mate(
    engine: MakeEngine, brief: MakeBrief, case: str, params: SamplingParams
) -> None:
    """The mate's tokens and figures are as alone, and its speculation goes on to the end."""
    mode, options = CASES[case]
    options = options | FIXED
    long, mate = random_prompt(40), random_prompt(3)
    alone = brief(mode, max_batch=1, **options).decode([mate], params)
    for prompts in ([long, mate], [mate, long]):
        found = dict(zip(map(len, prompts), brief(mode, max_batch=2, **options).decode(prompts, params), strict=True))
        assert figures([found[3]]) == figures(alone)
        assert found[40].token_ids == engine("ar").decode([long], params)[0].token_ids
        assert found[40].stats.proposed_counts == {0: NEW - 1}
    assert 0 not in {length for length in alone[0].stats.proposed_counts if alone[0].stats.proposed_counts[length] > 1}
    assert sum(alone[0].stats.accepted_at) > 0


@pytest.mark.parametrize("case", ["sd", "sd, tree", "ssd"])
@pytest.mark.parametrize("context", [1, 2, 5])
def test_a_context_may_be_shorter_than_a_speculation(
    brief: MakeBrief, monkeypatch: pytest.MonkeyPatch, engine: MakeEngine, case: str, context: int
) -> None:
    mode, options = CASES[case]
    prompts = random_prompts((1, 2, 3, 4, 5, 6))
    built = brief(mode, context, max_batch=3, **({"lookahead": 7} if "tree" not in options else {}), **options)
    positions = watch_positions(built, monkeypatch)
    assert tokens_of(built.decode(prompts, GREEDY)) == tokens_of(engine("ar").decode(prompts, GREEDY))
    assert all(position < context + 16 for position in positions)
    assert bool(positions) == (context > 1)


def test_rounds_beyond_the_context_teach_the_fan_out_and_the_fallback_nothing(brief: MakeBrief) -> None:
    built = brief("ssd", fan_out="measured", fallback="auto")
    built.decode([random_prompt(CONTEXT)], GREEDY)
    assert isinstance(built.core.loop, SpeculativeSpeculative)
    cache = built.core.loop.cache
    assert cache.measured is not None and cache.measured.observations == 0
    assert cache.fallback.look_ups == 0 and cache.fallback.t_neural == []


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", ["sd", "sd, tree", "ssd", "ssd, n-gram"])
def test_rounds_as_graphs_give_the_tokens_and_counts_of_eager_rounds(
    brief: MakeBrief,
    drafts: Callable[[int], str],
    captured: MakeCaptured,
    case: str,
    params: SamplingParams | list[SamplingParams],
    apart: bool,
) -> None:
    mode, options = CASES[case]
    options = FIXED | options | {"max_batch": 3}
    expected = figures(brief(mode, **options).decode(PROMPTS, params))
    with pytest.warns(RuntimeWarning, match="the draft was trained for"):
        one, _ = captured(mode, 0, drafts(CONTEXT), **options, draft_device="cpu" if apart else None)
    assert figures(one.decode(PROMPTS, params)) == expected


# The warning ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("max_context", [None, 33])
def test_loading_warns_once_with_both_numbers(
    engine: MakeEngine, drafts: Callable[[int], str], mode: str, max_context: int | None
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        built = engine(mode, drafts(CONTEXT), max_context=max_context)
        assert len(said) == 1
        built.decode([random_prompt(20)] * 2, SamplingParams(max_new_tokens=13))
        built.decode([random_prompt(20)], SamplingParams(max_new_tokens=13))
    (warning,) = said
    assert warning.category is RuntimeWarning
    assert str(warning.message) == (
        f"the draft was trained for 32 tokens, and max_context is {max_context or 512}; after 32 tokens it proposes nothing, and "
        "decoding goes on token by token"
    )


@pytest.mark.parametrize(
    "mode,draft,max_context",
    [
        ("sd", 32, 32),  # no sequence is longer than the draft's context
        ("ssd", 32, 20),
        ("ar", 32, None),  # the draft is not used
        ("sd", 512, None),
        ("sd", 1024, None),  # a longer context than the target's
        ("ssd", "self:2", None),
        ("sd", "ngram", None),
    ],
)
def test_loading_says_nothing_if_no_sequence_outgrows_the_draft(
    engine: MakeEngine, drafts: Callable[[int], str], mode: str, draft: str | int, max_context: int | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = engine(mode, draft if isinstance(draft, str) else drafts(draft), max_context=max_context)
        prompt = random_prompt(built.max_context - 12)
        (found,) = built.decode([prompt], SamplingParams(max_new_tokens=12, ignore_eos=True))
    assert len(found.token_ids) == 12
    if mode != "ar" and draft != "ngram":
        assert found.stats.proposed_counts.get(0, 0) <= 1  # the last round, if only one token was left


def test_the_drafts_rotary_table_ends_with_its_context(brief: MakeBrief, engine: MakeEngine) -> None:
    """Rows after the last token exceed a context by less than 2 * (lookahead + 1)."""
    built = brief("ssd", lookahead=3)
    assert len(built.target_model._cos_sin) == 512 + 8
    assert len(built.core.loop.drafter.model._cos_sin) == CONTEXT + 8  # type: ignore[union-attr]
