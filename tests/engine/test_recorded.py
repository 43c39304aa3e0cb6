"""Whole decodes with recorded rounds, which are the default on a CPU: the tokens and counts of eager rounds, and what happens
when a step fails."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine.cases import FIXED, MakeEngine, Models, hits_and_look_ups, random_prompts, tokens_of
from ssd import Completion, Engine, SamplingParams
from ssd.models.weights import EMBEDDINGS

LENGTHS = (40, 1, 23, 17, 40, 9, 31, 2)
PROMPTS = random_prompts((5, 17, 2, 33, 1, 16, 9, 20))
GREEDY = [SamplingParams(max_new_tokens=n) for n in LENGTHS]
SAMPLED = [SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=n, seed=i) for i, n in enumerate(LENGTHS)]
LOOPS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "ar": ("ar", None, {}),
    "sd": ("sd", "draft", {}),
    "sd, trimmed": ("sd", "trimmed", {}),
    "sd, tree": ("sd", "draft", {"tree": (2, 2, 1)}),
    "sd, n-grams": ("sd", "ngram", {}),
    "ssd": ("ssd", "draft", FIXED),
    "ssd, trimmed, C": ("ssd", "trimmed", FIXED | {"saguaro_c": 0.3}),
    "ssd, n-grams": ("ssd", "draft", {"fan_out": "uniform", "fallback": "ngram"}),
}
FORMATS = {"float32": {"dtype": "float32"}, "bf16": {"dtype": "bfloat16"}, "int8": {"dtype": "float32", "weights": "int8"}}


def decode(engine: MakeEngine, kind: str, loop: str, params: list[SamplingParams], **options: Any) -> list[Completion]:
    mode, draft, settings = LOOPS[loop]
    one = engine(mode, draft, **{"threads": 1} | settings | options)
    assert one.footprint.rounds == kind
    found = one.decode(PROMPTS, params)
    assert not any(completion.degraded for completion in found)
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("loop", LOOPS)
def test_recorded_rounds_give_the_tokens_and_counts_of_eager_ones(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, loop: str, params: list[SamplingParams], format: str
) -> None:
    for batch in (1, 3, 8):
        monkeypatch.setenv("SSD_EAGER", "1")
        expected = decode(engine, "eager", loop, params, max_batch=batch, **FORMATS[format])
        monkeypatch.setenv("SSD_EAGER", "0")
        found = decode(engine, "recorded", loop, params, max_batch=batch, **FORMATS[format])
        assert tokens_of(found) == tokens_of(expected)
        assert [c.stats.rounds for c in found] == [c.stats.rounds for c in expected]
        assert hits_and_look_ups(found) == hits_and_look_ups(expected)


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_two_threads_a_role_change_no_token(engine: MakeEngine, mode: str) -> None:
    options = {} if mode == "ar" else {"draft_threads": 2}
    one, two = engine(mode), engine(mode, threads=2, **options)
    assert tokens_of(two.decode(PROMPTS, GREEDY)) == tokens_of(one.decode(PROMPTS, GREEDY))


def test_only_what_repeats_is_recorded_and_a_second_decode_records_nothing(engine: MakeEngine) -> None:
    one = engine("ssd", max_batch=1, **FIXED)
    first = one.decode(PROMPTS[0], GREEDY[0])
    recorded = one.footprint.recorded
    assert recorded == 3  # look up, speculate, verify
    assert one.decode(PROMPTS[0], GREEDY[0]).token_ids == first.token_ids
    assert one.footprint.recorded == recorded and one.footprint.recording_bytes > 0


def test_a_step_of_the_draft_that_fails_costs_no_token(engine: MakeEngine) -> None:
    """The draft's program fails in mid-decode, while the target verifies."""
    expected = tokens_of(engine("ar").decode(PROMPTS, GREEDY))
    one = engine("ssd", max_batch=3)
    streams = [one.stream(prompt, params) for prompt, params in zip(PROMPTS, GREEDY, strict=True)]
    next(iter(streams[0]))
    one.core.loop.cache.fan_out_table.fill_(99)  # type: ignore[attr-defined]  # more guesses than the budget
    with pytest.warns(RuntimeWarning, match="the draft failed"):
        assert all(list(stream) for stream in streams)
    found = [stream.completion for stream in streams]
    assert [each.token_ids for each in found if each is not None] == expected
    assert any(each.degraded for each in found if each is not None)
    assert one.footprint.rounds == "recorded"


def test_a_step_of_the_target_that_fails_ends_the_requests_that_it_ran_for(engine: MakeEngine) -> None:
    one = engine("ar", max_batch=2)
    expected = one.decode(PROMPTS[3], GREEDY[0]).token_ids
    streams = [one.stream(prompt, GREEDY[0]) for prompt in PROMPTS[:2]]
    next(iter(streams[0]))
    table = one.core.loop.verifier.tables.state.page_table
    pages = table.clone()
    table.fill_(10**6)
    for stream in streams:
        with pytest.raises(RuntimeError, match=r"^kv_slots\[0\] is \d+, outside the cache's \d+ KV slots$"):
            list(stream)
    table.copy_(pages)
    assert one.decode(PROMPTS[3], GREEDY[0]).token_ids == expected
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_ctrl_c_in_a_decode_leaves_an_engine_that_can_be_used(engine: MakeEngine, mode: str) -> None:
    one = engine(mode)
    expected = one.decode(PROMPTS[0], GREEDY[0]).token_ids
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

    def decode_for_ever() -> None:
        timer.start()
        while True:
            one.decode(PROMPTS, GREEDY)

    try:
        with pytest.raises(KeyboardInterrupt):
            decode_for_ever()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity
    assert one.decode(PROMPTS[0], GREEDY[0]).token_ids == expected


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_a_token_whose_embedding_is_not_a_number_ends_its_request(models: Models, tmp_path: Path, mode: str) -> None:
    """The first such row comes from the weights, so the programs themselves are those of any decode."""
    with Engine(models.target, None, "ar", dtype="float32", threads=1) as engine:
        good = engine.decode(PROMPTS[0], GREEDY[0]).token_ids
    spoilt = next(token for i, token in enumerate(good) if i > 3 and token not in PROMPTS[0] + good[:i])
    shutil.copytree(models.target, tmp_path / "spoilt")
    weights = load_file(Path(models.target) / "model.safetensors")
    weights["lm_head.weight"] = weights.get("lm_head.weight", weights[EMBEDDINGS]).clone()
    weights[EMBEDDINGS][spoilt] = float("nan")
    save_file(weights, tmp_path / "spoilt" / "model.safetensors")
    config = json.loads((tmp_path / "spoilt" / "config.json").read_text())
    (tmp_path / "spoilt" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    draft = None if mode == "ar" else models.draft
    with Engine(str(tmp_path / "spoilt"), draft, mode, dtype="float32", threads=1) as engine:
        found = engine.decode(PROMPTS[0], GREEDY[0])
    end = good.index(spoilt) + 1
    assert (found.finish_reason, found.token_ids) == ("error", good[:end])


def test_thousands_of_rounds_take_no_more_memory(engine: MakeEngine) -> None:
    one, params = engine("sd", max_batch=1), SamplingParams(max_new_tokens=200, ignore_eos=True)

    def decode(rounds: int) -> int:
        """Decodes for so many rounds. Returns the most memory that the process has had, in KiB."""
        while rounds > 0:
            rounds -= one.decode(PROMPTS[0], params).stats.rounds
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = decode(500)
    assert decode(3_000) - before < 4_000
