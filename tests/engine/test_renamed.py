"""A draft whose tokenizer names some special tokens differently: it never proposes them, and no token changes.

The target loves its special tokens, and the draft is the target with noise, so a draft with the target's names proposes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from engine.cases import (
    FIXED,
    PADDED,
    VOCABULARY,
    MakeCaptured,
    MakeEngine,
    as_asked,
    hits_and_look_ups,
    random_prompts,
    tokens_of,
)
from ssd import Completion, Engine, SamplingParams, ops
from ssd.errors import SsdError
from ssd.models.weights import LM_HEAD

pytestmark = pytest.mark.usefixtures("eager_rounds")

SPECIAL = {0, 1, 2}  # END, USER, ASSISTANT
RENAMED = ["<|stop|>", tiny.USER, "<|reserved_1|>", *VOCABULARY[3:]]
DIFFERENT = {0, 2}
PROMPTS = random_prompts((4, 17, 1, 9, 30))
GREEDY = SamplingParams(max_new_tokens=40, ignore_eos=True)
SAMPLED = [SamplingParams(temperature=1.0, max_new_tokens=40, ignore_eos=True, seed=i) for i in range(len(PROMPTS))]
HOW = [
    pytest.param("sd", {}, id="sd chain"),
    pytest.param("sd", {"tree": (3, 2, 1)}, id="sd tree"),
    pytest.param("ssd", FIXED, id="ssd"),
    pytest.param("ssd", {"fallback": "neural"}, id="ssd measured"),
]


@pytest.fixture(scope="session")
def loving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: the target, and drafts that name its special tokens as it does, differently, or lack them."""
    root = tmp_path_factory.mktemp("loving")
    tensors = tiny.write_model(root / "target", tokenizer=VOCABULARY, vocab_size=PADDED)
    tensors[LM_HEAD][sorted(SPECIAL)] *= 3
    save_file(tensors, root / "target" / "model.safetensors")
    tiny.write_draft_of(root / "target", root / "same", noise=0.05)
    tiny.write_draft_of(root / "target", root / "renamed", noise=0.05, tokenizer=RENAMED)
    lacking = [i for i in range(len(VOCABULARY)) if i not in DIFFERENT]
    tiny.write_draft_of(root / "target", root / "lacking", noise=0.05, vocabulary=lacking)
    odd = list(range(1, len(VOCABULARY), 2))
    tiny.write_draft_of(root / "target", root / "trimmed", noise=0.05, vocabulary=[0, *odd], tokenizer=RENAMED)
    tiny.write_draft_of(root / "target", root / "trimmed lacking", noise=0.05, vocabulary=odd)
    return root


@dataclass
class Proposals:
    """Everything that the draft drew, guessed and handed to the target."""

    verified: set[int] = field(default_factory=set)
    guessed: set[int] = field(default_factory=set)
    drawn: set[int] = field(default_factory=set)


@pytest.fixture
def proposals(monkeypatch: pytest.MonkeyPatch) -> Proposals:
    found = Proposals()

    def spied(name: str, note: Callable[[dict[str, Any]], None]) -> None:
        op = getattr(ops, name)

        def call(*values: Any, **named: Any) -> None:
            op(*values, **named)
            note(signature(op).bind(*values, **named).arguments)

        monkeypatch.setattr(ops, name, call)

    def verified(arguments: dict[str, Any]) -> None:
        for tokens, length in zip(arguments["spec_tokens"].tolist(), arguments["spec_len"].tolist(), strict=True):
            found.verified.update(tokens[:length])

    def guessed(arguments: dict[str, Any]) -> None:
        found.guessed.update(arguments["guess"][arguments["guess_k"] >= 0].tolist())

    def drawn(arguments: dict[str, Any]) -> None:
        tokens, missed = arguments["tokens"], arguments.get("missed")
        tokens = tokens if missed is None else tokens[missed != 0]
        found.drawn.update(tokens[tokens >= 0].tolist())

    spied("verify", verified)
    spied("fork", guessed)
    spied("sample", drawn)
    return found


def build(engine: MakeEngine, loving: Path, mode: str, draft: str | None, **options: Any) -> Engine:
    """An engine on these models, which must warn of a draft with other names only."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = None if draft is None else str(loving / draft)
        built = engine(mode, path, target=loving / "target", **options)
    assert bool(caught) == (draft in ("renamed", "trimmed"))
    return built


def decode(built: Engine, mode: str, params: SamplingParams | Sequence[SamplingParams]) -> list[Completion]:
    return as_asked(built.decode(PROMPTS, params), mode)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode,options", HOW)
@pytest.mark.parametrize("draft,never", [("same", set()), ("renamed", DIFFERENT)])
def test_a_draft_never_proposes_a_token_that_it_names_differently(
    engine: MakeEngine,
    loving: Path,
    proposals: Proposals,
    draft: str,
    never: set[int],
    mode: str,
    options: dict[str, Any],
    params: Any,
) -> None:
    """With the target's names it does: so the other draft would."""
    found = decode(build(engine, loving, mode, draft, **options), mode, params)
    assert {token for tokens in tokens_of(found) for token in tokens} >= SPECIAL
    assert proposals.verified & SPECIAL == SPECIAL - never
    assert proposals.drawn & SPECIAL == SPECIAL - never
    if mode == "ssd":
        assert proposals.guessed & SPECIAL == SPECIAL - never


@pytest.mark.parametrize("mode,options", HOW)
@pytest.mark.parametrize("draft", ["renamed", "trimmed"])
def test_greedy_tokens_equal_autoregressive_ones(
    engine: MakeEngine, loving: Path, draft: str, mode: str, options: dict[str, Any]
) -> None:
    expected = tokens_of(build(engine, loving, "ar", None).decode(PROMPTS, GREEDY))
    found = decode(build(engine, loving, mode, draft, **options), mode, GREEDY)
    assert tokens_of(found) == expected
    assert sum(completion.stats.accepted_per_round for completion in found) > 0
    if mode == "ssd":
        hits, look_ups = hits_and_look_ups(found)
        assert 0 < hits < look_ups


@pytest.mark.parametrize("mode,options", HOW)
@pytest.mark.parametrize("draft,as_good_as", [("renamed", "lacking"), ("trimmed", "trimmed lacking")])
def test_sampled_tokens_are_those_of_a_draft_that_lacks_the_token(
    engine: MakeEngine, loving: Path, draft: str, as_good_as: str, mode: str, options: dict[str, Any]
) -> None:
    """test_law.py shows that sampling with such a draft follows the target's distribution."""
    found = decode(build(engine, loving, mode, draft, **options), mode, SAMPLED)
    assert tokens_of(found) == tokens_of(decode(build(engine, loving, mode, as_good_as, **options), mode, SAMPLED))


def test_sampled_ssd_equals_sampled_speculative_decoding(engine: MakeEngine, loving: Path) -> None:
    expected = decode(build(engine, loving, "sd", "renamed", max_batch=1), "sd", SAMPLED)
    found = decode(build(engine, loving, "ssd", "renamed", fallback="neural"), "ssd", SAMPLED)
    assert tokens_of(found) == tokens_of(expected)


@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_n_grams_may_be_tokens_that_the_draft_never_proposes(
    engine: MakeEngine, loving: Path, proposals: Proposals, mode: str
) -> None:
    """They come from the text, not from the draft."""
    draft, options = ("ngram", {}) if mode == "sd" else (str(loving / "renamed"), {"fallback": "ngram"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = engine(mode, draft, target=loving / "target", **options)
    assert tokens_of(decode(built, mode, GREEDY)) == tokens_of(build(engine, loving, "ar", None).decode(PROMPTS, GREEDY))
    assert proposals.verified & DIFFERENT
    assert not proposals.drawn & DIFFERENT


@pytest.mark.parametrize("mode,options", HOW)
def test_the_targets_end_of_sequence_token_ends_it(
    engine: MakeEngine, loving: Path, mode: str, options: dict[str, Any]
) -> None:
    """The draft names it <|stop|>, so only the target can choose it."""
    params = SamplingParams(max_new_tokens=40)
    expected = build(engine, loving, "ar", None).decode(PROMPTS, params)
    found = decode(build(engine, loving, mode, "renamed", **options), mode, params)
    assert tokens_of(found) == tokens_of(expected)
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert any(c.finish_reason == "eos" and c.token_ids[-1] == 0 for c in found)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_recorded_rounds_give_the_same_tokens(
    engine: MakeEngine, captured: MakeCaptured, loving: Path, mode: str, seed: int
) -> None:
    expected = tokens_of(decode(build(engine, loving, mode, "renamed", **FIXED), mode, SAMPLED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built, _ = captured(mode, seed, str(loving / "renamed"), target=loving / "target", **FIXED)
    assert tokens_of(decode(built, mode, SAMPLED)) == expected


# What is said -----------------------------------------------------------------------------------------------------------------


def test_a_warning_names_the_different_tokens(engine: MakeEngine, loving: Path) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        engine("sd", str(loving / "renamed"), target=loving / "target")
    (warning,) = caught
    assert "'<|end|>' (the draft's '<|stop|>'), '<|assistant|>' (the draft's '<|reserved_1|>')" in str(warning.message)
    assert str(loving / "renamed") in str(warning.message)
    assert tiny.USER not in str(warning.message)


def test_swapped_special_tokens_are_both_different(engine: MakeEngine, loving: Path, tmp_path: Path) -> None:
    swapped = [tiny.END, tiny.ASSISTANT, tiny.USER, *VOCABULARY[3:]]
    tiny.write_draft_of(loving / "target", tmp_path, noise=0.05, tokenizer=swapped)
    with pytest.warns(RuntimeWarning, match=r"'<\|user\|>' \(the draft's '<\|assistant\|>'\)"):
        built = engine("sd", str(tmp_path), target=loving / "target")
    assert tokens_of(built.decode(PROMPTS, GREEDY)) == tokens_of(build(engine, loving, "ar", None).decode(PROMPTS, GREEDY))


@pytest.mark.parametrize("swapped,first", [((70, 71), 70), ((2, 71), 71)], ids=["two pieces", "a special token and a piece"])
def test_an_ordinary_token_of_another_name_is_refused(
    engine: MakeEngine, loving: Path, tmp_path: Path, swapped: tuple[int, int], first: int
) -> None:
    tiny.write_draft_of(loving / "target", tmp_path, noise=0.05, tokenizer=tiny.vocabulary_of_bytes(swapped))
    with pytest.raises(SsdError, match=f"id {first} is .* for the target and .* for the draft"):
        engine("sd", str(tmp_path), target=loving / "target")


def test_a_draft_that_proposes_nothing_else_is_refused(engine: MakeEngine, loving: Path, tmp_path: Path) -> None:
    tiny.write_draft_of(loving / "target", tmp_path, noise=0.05, vocabulary=sorted(DIFFERENT), tokenizer=RENAMED)
    with pytest.warns(RuntimeWarning), pytest.raises(SsdError, match="proposes only tokens that .* names differently"):
        engine("sd", str(tmp_path), target=loving / "target")


def test_an_int8_head_loses_the_same_rows(loving: Path, engine: MakeEngine, tmp_path: Path) -> None:
    """In bfloat16 an int8 matrix stays int8, with a scale for each row that is left."""
    found = {}
    for name, tokenizer, vocabulary in (
        ("renamed", RENAMED, None),
        ("lacking", None, [i for i in range(len(VOCABULARY)) if i not in DIFFERENT]),
    ):
        path = tmp_path / name
        tiny.write_draft_of(loving / "target", path, noise=0.05, tokenizer=tokenizer, vocabulary=vocabulary)
        quantise(path / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = engine("sd", str(path), target=loving / "target", dtype="bfloat16")
        found[name] = tokens_of(as_asked(built.decode(PROMPTS, SAMPLED), "sd"))
    assert found["renamed"] == found["lacking"]


def quantise(file: Path) -> None:
    tensors = load_file(file)
    for name, weight in list(tensors.items()):
        if weight.dim() == 2 and name != "model.embed_tokens.weight":
            scale = weight.abs().amax(1) / 127
            tensors[name] = torch.round(weight / scale[:, None]).to(torch.int8)
            tensors[f"{name}_scale"] = scale
    save_file(tensors, file)
