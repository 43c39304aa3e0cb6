"""Whole decodes on the GPU: graphs give the tokens of eager rounds, and speculation changes no token, with a busy draft
stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from engine.cases import hits_and_look_ups, random_prompts, tokens_of
from ssd import Completion, Engine, SamplingParams
from ssd.runtime.captured import CapturedExecutor

SIZES = {
    "vocab_size": 288, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "max_position_embeddings": 1024,
}  # fmt: skip
PROMPTS = random_prompts((1, 17, 2, 256, 15, 257, 33, 16, 1, 300, 31, 255, *range(3, 103, 5)))
LENGTHS = (128, 1, 37, 20, 128, 31, 2, 48, 3, 23, 128, 5) + 20 * (128,)
GREEDY = [SamplingParams(max_new_tokens=n) for n in LENGTHS]
SAMPLED = [SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=n, seed=i) for i, n in enumerate(LENGTHS)]
LOOPS = [("ar", {}), ("sd", {}), ("sd", {"tree": (2, 2, 1)}), ("ssd", {"fallback": "neural"}), ("ssd", {"fallback": "ngram"})]
APART = {"draft_device": "cuda:0"}  # both roles on one GPU, each with its own tables, as on two GPUs
PLACES = [{}, APART, {"draft_sms": 16}] + ([{"draft_device": "cuda:1"}] if torch.cuda.device_count() > 1 else [])


@pytest.fixture(scope="module")
def autoregressive(pair: tuple[Path, Path]) -> list[list[int]]:
    return tokens_of(decode(pair, "ar", GREEDY, max_batch=1))


@pytest.fixture(scope="module")
def speculative(pair: tuple[Path, Path]) -> list[list[int]]:
    return tokens_of(decode(pair, "sd", SAMPLED, max_batch=1))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    tiny.write_model(root / "target", **SIZES)
    tiny.write_draft_of(root / "target", root / "draft", noise=0.07)
    return root / "target", root / "draft"


def decode(
    pair: tuple[Path, Path], mode: str, params: list[SamplingParams], eager: bool = False, **options: Any
) -> list[Completion]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_EAGER", str(int(eager)))
        draft = None if mode == "ar" else str(pair[1])
        with Engine(str(pair[0]), draft, mode, device="cuda", **{"max_batch": 3, "fan_out": "uniform"} | options) as engine:
            assert isinstance(engine.core.executor, CapturedExecutor) is not eager
            found = engine.decode(PROMPTS, params)
            assert engine.core.scheduler.pages.available == engine.core.scheduler.pages.capacity
    assert not any(completion.degraded for completion in found)
    return found


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("mode,options", LOOPS, ids=str)
@pytest.mark.parametrize("batch", [1, 8])
def test_graphs_give_the_tokens_of_eager_rounds(
    pair: tuple[Path, Path], mode: str, options: dict[str, Any], params: list[SamplingParams], batch: int
) -> None:
    expected = decode(pair, mode, params, eager=True, max_batch=batch, **options)
    found = decode(pair, mode, params, max_batch=batch, **options)
    assert tokens_of(found) == tokens_of(expected)
    assert hits_and_look_ups(found) == hits_and_look_ups(expected)


@pytest.mark.parametrize("where", PLACES, ids=str)
@pytest.mark.parametrize("mode,options", LOOPS[1:], ids=str)
def test_speculation_changes_no_token(
    pair: tuple[Path, Path], autoregressive: list[list[int]], mode: str, options: dict[str, Any], where: dict[str, Any]
) -> None:
    for batch in (1, 8):
        assert tokens_of(decode(pair, mode, GREEDY, max_batch=batch, **options, **where)) == autoregressive


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_sampled_ssd_equals_sampled_speculative_decoding(
    pair: tuple[Path, Path], speculative: list[list[int]], where: dict[str, Any]
) -> None:
    for batch in (1, 8):
        found = decode(pair, "ssd", SAMPLED, max_batch=batch, fallback="neural", **where)
        assert tokens_of(found) == speculative
        assert hits_and_look_ups(found)[0] > 0


@pytest.mark.parametrize("mode,options", LOOPS[1:], ids=str)
def test_int8_weights_give_one_answer_in_every_mode(pair: tuple[Path, Path], mode: str, options: dict[str, Any]) -> None:
    expected = tokens_of(decode(pair, "ar", GREEDY, max_batch=1, weights="int8"))
    assert tokens_of(decode(pair, mode, GREEDY, max_batch=8, weights="int8", **options)) == expected


def test_repeated_decodes_give_the_same_tokens_and_leak_no_memory(pair: tuple[Path, Path]) -> None:
    with Engine(str(pair[0]), str(pair[1]), "ssd", device="cuda", max_batch=8, fallback="neural") as engine:
        first = tokens_of(engine.decode(PROMPTS, GREEDY))
        torch.cuda.synchronize()
        before, rounds = torch.cuda.memory_reserved(), 0
        while rounds < 10_000:
            found = engine.decode(PROMPTS, GREEDY)
            assert tokens_of(found) == first
            rounds += max(completion.stats.rounds for completion in found) * (len(PROMPTS) // 8 + 1)
        assert torch.cuda.memory_reserved() == before
        assert engine.core.scheduler.pages.available == engine.core.scheduler.pages.capacity
