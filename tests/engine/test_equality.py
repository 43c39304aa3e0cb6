"""Speculation changes no token: greedy AR = SD = SSD, and sampled SSD = SD, whatever the draft, batch, threads, K, B, fan-out
and C.

Sampled SSD = SD holds with the neural fallback: a hit and a miss then hand out the same speculation. Greedy tokens do not
depend on what a miss gets.

The reference is decoded one sequence at a time on one thread. Each comparison also shows that there was something to compare:
the mode ran as asked, and the speculation cache was hit and missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from engine.cases import (
    MakeEngine,
    Models,
    accepted_in_all,
    as_asked,
    autoregressive_tokens,
    hits_and_look_ups,
    random_prompts,
    tokens_of,
    was_cut_in_a_round,
)
from ssd import Completion, SamplingParams

# Lengths: one token; around one page (16) and two; around a prefill chunk (256). There are more prompts than slots.
PROMPTS = random_prompts((1, 17, 2, 256, 15, 257, 33, 16, 1, 300, 31, 255))
LENGTHS = (48, 1, 37, 20, 44, 31, 2, 48, 3, 23, 40, 5)
GREEDY = [SamplingParams(max_new_tokens=n) for n in LENGTHS]
SAMPLED = [
    SamplingParams(temperature=1.0, max_new_tokens=n, seed=None if i % 5 == 0 else i)
    if i % 3 == 0
    else SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=n, seed=i)
    if i % 3 == 1
    else SamplingParams(temperature=1.3, top_k=40, min_p=0.02, max_new_tokens=n, seed=-i)
    for i, n in enumerate(LENGTHS)
]


@dataclass(frozen=True)
class Case:
    draft: str
    lookahead: int = 4
    budget: int = 8
    fan_out: str | tuple[int, ...] = "measured"
    batch: int = 3
    threads: int = 1
    dtype: str = "float32"
    draft_threads: int = 1
    fallback: str = "neural"
    saguaro_c: float = 1.0
    weights: str = "auto"

    @property
    def numbers(self) -> tuple[str, str]:
        """What the tokens depend on, besides the target: dtype, and format of the weights."""
        return self.dtype, self.weights

    def __str__(self) -> str:
        fan_out = self.fan_out if isinstance(self.fan_out, str) else "-".join(map(str, self.fan_out))
        return (
            f"{self.draft} K={self.lookahead} B={self.budget} {fan_out} batch={self.batch} threads={self.threads} {self.dtype} "
            f"{self.fallback} C={self.saguaro_c} {self.weights}"
        )


CASES = [
    Case("draft"),
    Case("draft", batch=1, fan_out="geometric"),
    Case("draft", batch=8, fan_out="uniform", saguaro_c=0.3),
    Case("draft", lookahead=1, budget=1, fan_out=(0, 1), batch=8),
    Case("draft", lookahead=1, budget=2, fan_out="geometric"),
    Case("draft", lookahead=2, budget=3, batch=8, dtype="bfloat16"),
    Case("draft", lookahead=6, budget=16, saguaro_c=0.3),
    Case("draft", lookahead=3, budget=16, fan_out=(0, 0, 0, 16), batch=8),
    Case("draft", lookahead=5, budget=7, fan_out=(7, 0, 0, 0, 0, 0), saguaro_c=0.3),
    Case("self:2", batch=8),
    Case("self:2", lookahead=6, budget=5, batch=1, fan_out="geometric"),
    Case("self:2", lookahead=3, budget=8, fan_out=(2, 2, 2, 2), dtype="bfloat16"),
    Case("self:1", lookahead=2, budget=16, batch=8, fan_out="uniform"),
    Case("self:3", lookahead=5, budget=1, fan_out=(0, 0, 0, 0, 0, 1)),
    Case("trimmed", fan_out="geometric"),
    Case("trimmed", lookahead=5, budget=12, fan_out=(3, 2, 2, 2, 1, 2), batch=8),
    Case("trimmed", lookahead=2, budget=4, batch=1, dtype="bfloat16", saguaro_c=0.3),
    Case("draft", batch=8, threads=2),
    Case("self:2", lookahead=3, budget=4, threads=2, dtype="bfloat16", draft_threads=2, fan_out="uniform"),
    Case("draft", weights="int8"),
    Case("draft", batch=8, threads=2, dtype="bfloat16", weights="int8", saguaro_c=0.3),
    Case("self:2", batch=1, dtype="bfloat16", weights="int8", fan_out="uniform"),
]
WITH_N_GRAMS = [
    Case("draft", fallback="ngram"),
    Case("draft", fan_out="uniform", batch=8, fallback="ngram", dtype="bfloat16"),
    Case("trimmed", fan_out="geometric", batch=1, fallback="ngram"),
    Case("draft", fallback="auto"),
    Case("self:2", fan_out=(3, 2, 1, 1, 1), batch=8, fallback="auto", dtype="bfloat16"),
    Case("draft", fallback="ngram", weights="int8"),
]


def decode(
    engine: MakeEngine, case: Case, mode: str, params: Sequence[SamplingParams], batch: int | None = None
) -> list[Completion]:
    built = engine(
        mode, case.draft, lookahead=case.lookahead, budget=case.budget, fan_out=case.fan_out, dtype=case.dtype,
        max_batch=batch or case.batch, threads=1 if batch else case.threads, draft_threads=case.draft_threads,
        fallback=case.fallback, saguaro_c=case.saguaro_c, weights=case.weights,
    )  # fmt: skip
    return as_asked(built.decode(PROMPTS, params), mode)


@pytest.fixture(scope="session")
def autoregressive(models: Models) -> dict[tuple[str, str], list[list[int]]]:
    """The tokens of PROMPTS with GREEDY, by `Case.numbers`."""
    formats = {weights: autoregressive_tokens(models, PROMPTS, GREEDY, weights) for weights in ("auto", "int8")}
    return {(dtype, weights): tokens for weights, by_dtype in formats.items() for dtype, tokens in by_dtype.items()}


@pytest.mark.parametrize("batch,threads", [(3, 1), (8, 1), (8, 2)])
@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autoregressive_decoding_does_not_depend_on_batch_or_threads(
    engine: MakeEngine,
    autoregressive: dict[tuple[str, str], list[list[int]]],
    batch: int,
    threads: int,
    dtype: str,
    weights: str,
) -> None:
    found = engine("ar", max_batch=batch, threads=threads, dtype=dtype, weights=weights).decode(PROMPTS, GREEDY)
    assert tokens_of(found) == autoregressive[dtype, weights]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_speculative_decoding_equals_autoregressive(
    engine: MakeEngine, autoregressive: dict[tuple[str, str], list[list[int]]], case: Case
) -> None:
    found = decode(engine, case, "sd", GREEDY)
    assert tokens_of(found) == autoregressive[case.numbers]
    assert sum(accepted_in_all(completion) for completion in found) > 0


@pytest.mark.parametrize("case", CASES + WITH_N_GRAMS, ids=str)
def test_greedy_ssd_equals_autoregressive(
    engine: MakeEngine, autoregressive: dict[tuple[str, str], list[list[int]]], case: Case
) -> None:
    found = decode(engine, case, "ssd", GREEDY)
    assert tokens_of(found) == autoregressive[case.numbers]
    hits, look_ups = hits_and_look_ups(found)
    assert hits > 0
    assert look_ups > hits or case.draft == "self:3"  # "self:3" is the whole target, so it guesses every outcome


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampled_ssd_equals_sampled_speculative_decoding(engine: MakeEngine, case: Case) -> None:
    expected = decode(engine, case, "sd", SAMPLED, batch=1)
    found = decode(engine, case, "ssd", SAMPLED)
    assert tokens_of(found) == tokens_of(expected)
    hits, look_ups = hits_and_look_ups(found)
    assert 0 < hits < look_ups


def test_greedy_and_sampled_requests_share_a_batch(engine: MakeEngine) -> None:
    """The sampled ones make the engine allocate the draft's distributions while greedy ones are running."""
    mixed = [GREEDY[i] if i % 2 == 0 else SAMPLED[i] for i in range(len(PROMPTS))]
    found = tokens_of(engine("ssd", fallback="neural").decode(PROMPTS, mixed))
    assert found[::2] == tokens_of(engine("ar").decode(PROMPTS[::2], mixed[::2]))
    assert found[1::2] == tokens_of(engine("sd", max_batch=1).decode(PROMPTS[1::2], mixed[1::2]))


@pytest.mark.parametrize(
    "draft,lookahead,budget",
    [
        ("same", 3, 16),  # more guesses than the vocabulary has tokens
        ("same", 39, 4),  # a lookahead as long as the context
        ("larger", 2, 9),  # a draft that could propose ids that the target lacks
        ("smaller", 4, 8),  # a draft that has fewer ids
    ],
)
def test_speculation_may_exceed_the_vocabulary_and_the_context(
    engine: MakeEngine, tmp_path: Path, draft: str, lookahead: int, budget: int
) -> None:
    sizes = {"max_position_embeddings": 40, "num_hidden_layers": 1}
    tiny.write_model(tmp_path / "target", seed=3, vocab_size=6, **sizes)
    tiny.write_draft_of(tmp_path / "target", tmp_path / "same", noise=0.3)
    tiny.write_model(tmp_path / "larger", seed=3, vocab_size=11, **sizes)
    tiny.write_model(tmp_path / "smaller", seed=3, vocab_size=4, **sizes)
    prompts = [[i % 6 for i in range(n)] for n in (1, 39, 20, 5, 33)]
    params = [SamplingParams(max_new_tokens=40 - len(p), temperature=t) for p in prompts for t in (0.0, 1.0)]
    found = {}
    for mode, slots in (("ar", 1), ("sd", 1), ("ssd", 3)):
        one = engine(
            mode, str(tmp_path / draft), target=tmp_path / "target", lookahead=lookahead, budget=budget, max_batch=slots,
            fallback="neural",
        )  # fmt: skip
        completions = one.decode([prompt for prompt in prompts for _ in range(2)], params)
        assert not any(completion.degraded for completion in completions)
        found[mode] = tokens_of(completions)
    assert found["ssd"] == found["sd"]
    assert found["ssd"][::2] == found["ar"][::2]


# Ends in the middle of a round ------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(engine: MakeEngine) -> list[SamplingParams]:
    """Parameters with which greedy sequences of PROMPTS end in every way. The stop strings occur in their texts."""
    texts = [completion.text for completion in engine("ar").decode(PROMPTS, SamplingParams(max_new_tokens=40))]
    return [
        SamplingParams(max_new_tokens=40 - i, stop=() if i % 2 else (text[i + 8 : i + 11],)) for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_stop_string_ends_a_sequence_in_the_middle_of_a_round(
    engine: MakeEngine, ends: list[SamplingParams], mode: str, batch: int
) -> None:
    expected = engine("ar").decode(PROMPTS, ends)
    found = engine(mode, max_batch=batch).decode(PROMPTS, ends)
    assert tokens_of(found) == tokens_of(expected)
    assert [c.text for c in found] == [c.text for c in expected]
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
    assert any(c.finish_reason == "stop" and was_cut_in_a_round(c) for c in found)


@pytest.mark.parametrize("mode", ["sd", "ssd"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_of_sequence_token_ends_a_sequence_in_the_middle_of_a_round(
    engine: MakeEngine, ending: str, mode: str, temperature: float
) -> None:
    """Every eighth token of this target ends a sequence, so the draft proposes such tokens."""
    params = SamplingParams(temperature=temperature, max_new_tokens=64, seed=1)
    reference = "ar" if temperature == 0 else "sd"
    expected = engine(reference, None if reference == "ar" else "self:2", target=ending, max_batch=1).decode(PROMPTS, params)
    found = engine(mode, "self:2", target=ending, max_batch=4, fallback="neural").decode(PROMPTS, params)
    assert tokens_of(found) == tokens_of(expected)
    ended = [c for c in found if c.finish_reason == "eos"]
    assert all(c.token_ids[-1] % 8 == 0 and not any(t % 8 == 0 for t in c.token_ids[:-1]) for c in ended)
    assert any(was_cut_in_a_round(c) for c in ended)


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
@pytest.mark.parametrize("tokens", range(1, 13))
def test_a_sequence_has_exactly_the_requested_number_of_tokens(engine: MakeEngine, mode: str, tokens: int) -> None:
    """The last round never commits more tokens than are left."""
    found = engine(mode, lookahead=4).decode(PROMPTS[:3], SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    assert [len(c.token_ids) for c in found] == [tokens] * 3
    assert {c.finish_reason for c in found} == {"length"}
