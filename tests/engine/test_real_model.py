"""SmolLM2 decodes the same tokens in every mode, with its default draft and with its own first layers as the draft.

By default a few prompts are decoded. With --acceptance, whole grids run over the prompts in the folder $SSD_PROMPTS
(humaneval.jsonl, gsm8k.jsonl, mt_bench.jsonl), and every case prints its figures. On two cores this takes hours; -k selects
cases.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from engine.cases import as_asked, hits_and_look_ups, tokens_of
from ssd import Completion, Engine, SamplingParams
from ssd.errors import SsdError
from ssd.models import pair, registry

MODEL = "smollm2-135m"
PROCESSINGS: dict[str, dict[str, Any]] = {"temperature 1": {"temperature": 1.0}, "top_p": {"temperature": 0.7, "top_p": 0.9}}

PROMPTS = [
    "Write a Python function that returns the second largest number in a list.",
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Explain each step.",
    "What is the difference between a lake and a river?",
    "def is_palindrome(text: str) -> bool:\n    # complete this function",
]


@pytest.fixture(autouse=True)
def model_is_here() -> None:
    try:
        registry.resolve(MODEL)
    except SsdError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def loaded() -> dict[Any, pair.Target]:
    return {}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, loaded: dict[Any, pair.Target]) -> Callable[..., Any]:
    """Builds an engine for a with statement. The target's weights are loaded once per dtype."""

    def load_once(
        name: str, dtype: Any, device: Any, positions_for: Callable[[int], int], progress: pair.OnProgress, weights: Any
    ) -> pair.Target:
        key = (name, dtype, positions_for(0), weights)
        if key not in loaded:
            loaded[key] = pair.load_target(name, dtype, device, positions_for, progress, weights)
        return loaded[key]

    monkeypatch.setattr("ssd.serving.loading.load_target", load_once)

    @contextmanager
    def build(mode: str, draft: str | None, **options: Any) -> Iterator[Engine]:
        with Engine(MODEL, draft, mode, max_context=1024, **options) as engine:
            yield engine

    return build


def decode(
    engine: Callable[..., Any], mode: str, draft: str | None, prompts: list[str], params: SamplingParams, **options: Any
) -> list[Completion]:
    with engine(mode, draft, **options) as built:
        return as_asked(built.decode(prompts, params), mode)


# A few prompts ----------------------------------------------------------------------------------------------------------------

GREEDY = SamplingParams(max_new_tokens=24)


@pytest.fixture(scope="module")
def known() -> dict[str, list[list[int]]]:
    return {}


@pytest.fixture
def autoregressive(engine: Callable[..., Any], known: dict[str, list[list[int]]]) -> Callable[[str], list[list[int]]]:
    """The tokens of PROMPTS in a dtype, decoded at the first request for them."""

    def tokens(dtype: str) -> list[list[int]]:
        if dtype not in known:
            known[dtype] = tokens_of(decode(engine, "ar", None, PROMPTS, GREEDY, dtype=dtype, max_batch=2, threads=1))
        return known[dtype]

    return tokens


@pytest.mark.parametrize(
    "mode,draft,batch,dtype",
    [
        ("sd", "self:25", 8, "bfloat16"),
        ("ssd", "self:25", 3, "bfloat16"),
        ("ssd", "self:30", 8, "bfloat16"),
        ("ssd", "self:25", 8, "float32"),
        ("sd", "auto", 3, "bfloat16"),
        ("ssd", "auto", 8, "bfloat16"),
        ("sd", "auto", 8, "float32"),
    ],
)
def test_greedy_decoding_gives_the_same_tokens_in_every_mode(
    engine: Callable[..., Any],
    autoregressive: Callable[[str], list[list[int]]],
    mode: str,
    draft: str,
    batch: int,
    dtype: str,
) -> None:
    found = decode(engine, mode, draft, PROMPTS, GREEDY, dtype=dtype, max_batch=batch, threads=1, fallback="neural")
    assert tokens_of(found) == autoregressive(dtype)
    tokens = sum(len(completion.token_ids) for completion in found)
    assert sum(completion.stats.rounds for completion in found) <= 0.8 * tokens
    if mode == "ssd":
        hits, look_ups = hits_and_look_ups(found)
        assert hits > 0 and (look_ups > hits or draft == "self:30")


def test_a_repeating_text_needs_no_draft_model(engine: Callable[..., Any]) -> None:
    """N-gram proposals give at least three tokens per round."""
    prompt = "Repeat the following text word for word, and nothing else:\n\n" + (
        "The lighthouse at Gull Point was built in 1871 by three brothers from Ardmore. It is forty metres high and has two "
        "hundred and twelve steps. Its lamp can be seen from thirty kilometres away."
    )
    params = SamplingParams(max_new_tokens=64)
    (expected,) = tokens_of(decode(engine, "ar", None, [prompt], params, threads=1))
    (found,) = decode(engine, "sd", "ngram", [prompt], params, threads=1)
    assert found.token_ids == expected
    assert len(found.token_ids) - 1 >= 3 * found.stats.rounds


@pytest.mark.parametrize(
    "mode,draft,options",
    [
        ("sd", "self:25", {"tree": (3, 2, 1)}),
        ("sd", "ngram", {"lookahead": 6}),
        ("ssd", "self:25", {"fallback": "ngram", "fan_out": "uniform"}),
        ("ssd", "self:25", {"fallback": "auto"}),
    ],
    ids=str,
)
def test_greedy_decoding_gives_the_same_tokens_however_it_speculates(
    engine: Callable[..., Any],
    autoregressive: Callable[[str], list[list[int]]],
    mode: str,
    draft: str,
    options: dict[str, Any],
) -> None:
    found = decode(engine, mode, draft, PROMPTS, GREEDY, dtype="bfloat16", max_batch=3, threads=1, **options)
    assert tokens_of(found) == autoregressive("bfloat16")


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_sampled_ssd_equals_sampled_speculative_decoding(engine: Callable[..., Any], processing: str) -> None:
    params = SamplingParams(**PROCESSINGS[processing], max_new_tokens=16)
    expected = decode(engine, "sd", "self:25", PROMPTS, params, max_batch=2, threads=1)
    found = decode(engine, "ssd", "self:25", PROMPTS, params, max_batch=8, threads=1, fallback="neural")
    assert tokens_of(found) == tokens_of(expected)
    assert hits_and_look_ups(found)[0] > 0


# The whole grids --------------------------------------------------------------------------------------------------------------

TOKENS = 128


def first_of(name: str, field: str, count: int) -> list[str]:
    """The first prompts of a file. A prompt of several turns is cut to its first."""
    folder = os.environ.get("SSD_PROMPTS")
    if folder is None:
        pytest.fail("set SSD_PROMPTS to a folder with humaneval.jsonl, gsm8k.jsonl and mt_bench.jsonl")
    lines = (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    values = [json.loads(line)[field] for line in lines]
    return [value[0] if isinstance(value, list) else value for value in values]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """The first 32 of two sets, in turn."""
    columns = first_of("humaneval", "prompt", 32), first_of("gsm8k", "question", 32)
    return [prompt for both in zip(*columns, strict=True) for prompt in both]


@dataclass
class Measured:
    tokens: list[list[int]]
    rounds: int
    hits: int
    look_ups: int
    hits_after_acceptance: int  # with k ≥ 1

    @property
    def count(self) -> int:
        return sum(map(len, self.tokens))


@pytest.fixture
def measure(
    engine: Callable[..., Any], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Callable[..., Measured]:
    """Decodes prompts and prints their figures."""

    def run(
        mode: str, draft: str | None, prompts: list[str], params: SamplingParams, expected: Measured | None, **options: Any
    ) -> Measured:
        began = time.perf_counter()
        completions = decode(engine, mode, draft, prompts, params, **options)
        seconds = time.perf_counter() - began
        hits, look_ups = hits_and_look_ups(completions)
        rounds = sum(completion.stats.rounds for completion in completions)
        found = Measured(tokens_of(completions), rounds, hits, look_ups, hits_and_look_ups(completions, least_k=1)[0])
        figures = f"{found.count} tokens, {rounds} rounds ({rounds / found.count:.3f} a token)"
        if mode == "ssd":
            figures += f", {hits} hits of {look_ups} look-ups, {found.hits_after_acceptance} with k ≥ 1"
        if expected is not None:
            figures += f", {differing(found, expected)} tokens differ"
        with capsys.disabled():
            print(f"\n{request.node.name}: {mode} {draft or ''}: {figures}, {seconds:.0f} s")
        return found

    return run


def differing(found: Measured, expected: Measured) -> int:
    pairs = zip(found.tokens, expected.tokens, strict=True)
    return sum(a != b for one, other in pairs for a, b in zip(one, other, strict=False)) + abs(found.count - expected.count)


@pytest.fixture(scope="module")
def references() -> dict[str, Measured]:
    """The reference tokens, by dtype or processing, computed on first use."""
    return {}


@pytest.mark.acceptance
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("batch,threads", [(8, 2), (8, 1), (1, 2), (1, 1)])
@pytest.mark.parametrize("mode,draft", [("ar", None), *product(("sd", "ssd"), ("self:25", "self:30"))])
def test_greedy_tokens_are_the_same_over_the_whole_grid(
    measure: Callable[..., Measured], references: dict[str, Measured], prompts: list[str], dtype: str, batch: int, threads: int,
    mode: str, draft: str | None,
) -> None:  # fmt: skip
    """0 tokens differ from one autoregressive decode, and some proposals were accepted."""
    params = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)
    if dtype not in references:
        references[dtype] = measure("ar", None, prompts, params, None, dtype=dtype, max_batch=8, threads=2)
    options = {"dtype": dtype, "max_batch": batch, "threads": threads, "fallback": "neural"}
    found = measure(mode, draft, prompts, params, references[dtype], **options)
    assert found.count == TOKENS * len(prompts)
    assert differing(found, references[dtype]) == 0
    if mode != "ar":
        assert found.rounds <= 0.8 * found.count
    if mode == "ssd":
        assert found.hits >= 500
        assert found.hits_after_acceptance >= 200


@pytest.mark.acceptance
@pytest.mark.parametrize("processing", PROCESSINGS)
@pytest.mark.parametrize("mode,batch", [("ssd", 8), ("ssd", 1), ("sd", 1)])
def test_sampled_tokens_are_the_same_over_the_whole_grid(
    measure: Callable[..., Measured],
    references: dict[str, Measured],
    prompts: list[str],
    processing: str,
    mode: str,
    batch: int,
) -> None:
    """0 tokens differ from one plain speculative decode."""
    params, half = SamplingParams(**PROCESSINGS[processing], max_new_tokens=TOKENS, ignore_eos=True), prompts[:32]
    if processing not in references:
        references[processing] = measure("sd", "self:25", half, params, None, max_batch=8, threads=2)
    found = measure(mode, "self:25", half, params, references[processing], max_batch=batch, threads=2, fallback="neural")
    assert differing(found, references[processing]) == 0
    if mode == "ssd":
        assert 0 < found.hits < found.look_ups


@pytest.mark.acceptance
@pytest.mark.parametrize("name,field", [("humaneval", "prompt"), ("gsm8k", "question"), ("mt_bench", "turns")])
def test_a_tree_gives_more_tokens_per_round_than_a_chain(measure: Callable[..., Measured], name: str, field: str) -> None:
    """Greedy, the tree (3, 2, 1, 1) compared with K = 4: the same tokens in fewer rounds."""
    prompts = first_of(name, field, 32)
    params = SamplingParams(max_new_tokens=TOKENS // 2)
    expected = measure("ar", None, prompts, params, None, max_batch=8, threads=2)
    chain = measure("sd", "self:25", prompts, params, expected, max_batch=8, threads=2)
    tree = measure("sd", "self:25", prompts, params, expected, max_batch=8, threads=2, tree=(3, 2, 1, 1))
    assert differing(chain, expected) == differing(tree, expected) == 0
    assert tree.rounds < chain.rounds
