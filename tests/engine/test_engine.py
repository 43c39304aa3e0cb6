"""The engine's interface: prompts of every kind, streamed text, stop strings, finish reasons, log-probabilities, seeds,
stats."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import ssd
import tiny
from engine.cases import PADDED, VOCABULARY, MakeEngine, Models, accepted_in_all, random_prompt, random_prompts, tokens_of
from ssd import Completion, Engine, SamplingParams
from ssd.errors import SsdError
from ssd.requests import Stream

MODES = ("ar", "sd", "ssd")
PROMPTS = random_prompts((4, 9, 1, 20, 7, 2))


@pytest.fixture(scope="module")
def tokenizer(models: Models) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(models.target)


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# Prompts ----------------------------------------------------------------------------------------------------------------------


def test_a_string_is_one_user_message(engine: MakeEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    one, params = engine(), SamplingParams(max_new_tokens=8)
    written_out = tokenizer.encode("<|user|>the end<|end|><|assistant|>")
    assert written_out[0] == VOCABULARY.index(tiny.USER)
    expected = one.decode(written_out, params).token_ids
    assert one.decode("the end", params).token_ids == expected
    assert one.decode([{"role": "user", "content": "the end"}], params).token_ids == expected


def test_a_raw_string_is_encoded_without_the_chat_template(engine: MakeEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    one, params = engine(), SamplingParams(max_new_tokens=8)
    assert one.decode("the end", params, raw=True).token_ids == one.decode(tokenizer.encode("the end"), params).token_ids
    assert one.decode("the end", params, raw=True).token_ids != one.decode("the end", params).token_ids


def test_a_conversation_is_rendered_with_all_its_messages(engine: MakeEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    one, params = engine(), SamplingParams(max_new_tokens=8)
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "one"}]
    written_out = "<|user|>one<|end|><|assistant|>two<|end|><|user|>one<|end|><|assistant|>"
    assert one.decode(messages, params).token_ids == one.decode(tokenizer.encode(written_out), params).token_ids


@pytest.mark.parametrize("kind", [list, tuple, lambda ids: [np.int64(i) for i in ids]], ids=["list", "tuple", "numpy"])
def test_token_ids_are_used_unchanged(engine: MakeEngine, kind: Callable[[list[int]], Any]) -> None:
    one, params = engine(), SamplingParams(max_new_tokens=8)
    assert one.decode(kind(PROMPTS[0]), params).token_ids == one.decode([PROMPTS[0]], params)[0].token_ids


def test_one_prompt_gives_one_completion_and_a_list_gives_a_list_in_order(engine: MakeEngine) -> None:
    one, params = engine(max_batch=2), SamplingParams(max_new_tokens=6)
    alone = [one.decode(prompt, params) for prompt in ("a", [5, 6], [{"role": "user", "content": "b"}])]
    assert all(isinstance(completion, Completion) for completion in alone)
    together = one.decode(["a", [5, 6], [{"role": "user", "content": "b"}]], params)
    assert tokens_of(together) == tokens_of(alone)
    (of_one,) = one.decode(["a"], params)
    assert of_one.token_ids == alone[0].token_ids


def test_each_prompt_can_have_its_own_parameters(engine: MakeEngine) -> None:
    found = engine("ssd").decode(PROMPTS[:3], [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (3, 14, 7)])
    assert [len(c.token_ids) for c in found] == [3, 14, 7]


def test_padding_of_the_vocabulary_is_never_drawn(models: Models, engine: MakeEngine, tmp_path: Path) -> None:
    """The padded rows of this head have the largest logits."""
    tensors = tiny.write_model(tmp_path, tokenizer=VOCABULARY, vocab_size=PADDED)
    tensors["lm_head.weight"][len(VOCABULARY) :] *= 30
    tiny.save_file(tensors, tmp_path / "model.safetensors")
    for mode, draft in (("ar", None), ("ssd", str(tmp_path))):
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature, max_new_tokens=30)
            completions = engine(mode, draft, target=tmp_path).decode(PROMPTS, params)
            assert max(max(tokens) for tokens in tokens_of(completions)) < len(VOCABULARY)


# Text -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_equals_the_decoded_tokens(
    engine: MakeEngine, tokenizer: PreTrainedTokenizerFast, mode: str, temperature: float
) -> None:
    """Even for characters that span tokens, and for bytes that form no character."""
    for completion in engine(mode).decode(PROMPTS, SamplingParams(temperature=temperature, max_new_tokens=60, seed=1)):
        assert completion.text == text_of(tokenizer, completion.token_ids)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", PROMPTS[:4], ids=len)
def test_joined_stream_pieces_equal_the_text(engine: MakeEngine, mode: str, prompt: list[int]) -> None:
    one = engine(mode, fallback="neural")
    params = SamplingParams(temperature=1.0, max_new_tokens=80, seed=2, ignore_eos=True)
    stream = one.stream(prompt, params)
    assert stream.completion is None
    pieces = list(stream)
    assert stream.completion is not None
    assert "".join(pieces) == stream.completion.text
    assert "" not in pieces and len(pieces) > 3
    whole = one.decode(prompt, params)
    assert (stream.completion.token_ids, stream.completion.text) == (whole.token_ids, whole.text)


def test_a_piece_comes_before_the_next_round(engine: MakeEngine) -> None:
    """So text is not held back until the end."""
    stream = engine().stream(PROMPTS[0], SamplingParams(max_new_tokens=60, ignore_eos=True))
    assert len(next(iter(stream))) < 4
    assert stream.completion is None


# Stop strings -----------------------------------------------------------------------------------------------------------------


TELL = {"max_new_tokens": 60, "ignore_eos": True}


@pytest.fixture
def told(engine: MakeEngine) -> Completion:
    """The text of PROMPTS[0], decoded greedily without a stop string."""
    completion: Completion = engine().decode(PROMPTS[0], SamplingParams(**TELL))
    return completion


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0, 1, 7, 20, 33])
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_stop_string_ends_the_text_before_it(
    engine: MakeEngine, tokenizer: PreTrainedTokenizerFast, told: Completion, mode: str, first: int, length: int
) -> None:
    """However many tokens it spans. No token is kept after the one that completes it."""
    stop = told.text[first : first + length]
    stopped = engine(mode).decode(PROMPTS[0], SamplingParams(**TELL, stop=stop))
    assert stopped.finish_reason == "stop"
    assert stopped.text == told.text[: told.text.find(stop)]
    assert stopped.token_ids == told.token_ids[: len(stopped.token_ids)]
    assert stop in text_of(tokenizer, stopped.token_ids)
    assert stop not in text_of(tokenizer, stopped.token_ids[:-1]).rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("mode", MODES)
def test_no_stream_piece_contains_any_of_a_stop_string(engine: MakeEngine, told: Completion, mode: str) -> None:
    for first in range(3, 30, 4):
        stream = engine(mode).stream(PROMPTS[0], SamplingParams(**TELL, stop=told.text[first : first + 6]))
        text = "".join(stream)
        assert stream.completion is not None
        assert text == stream.completion.text == told.text[: told.text.find(told.text[first : first + 6])]


def test_the_beginning_of_a_stop_string_is_shown_once_it_cannot_be_completed(engine: MakeEngine, told: Completion) -> None:
    nearly = [told.text[first : first + 3] + "!!!" for first in range(0, 30, 3)]
    stream = engine().stream(PROMPTS[0], SamplingParams(**TELL, stop=tuple(nearly)))
    assert "".join(stream) == told.text
    assert stream.completion is not None and stream.completion.finish_reason == told.finish_reason


def test_the_first_of_several_stop_strings_ends_the_text(engine: MakeEngine, told: Completion) -> None:
    stops = (told.text[25:28], told.text[10:12], told.text[11:14])
    stopped = engine().decode(PROMPTS[0], SamplingParams(**TELL, stop=stops))
    assert stopped.text == told.text[: min(told.text.find(stop) for stop in stops)]


def test_a_stop_string_in_the_prompt_is_ignored(engine: MakeEngine) -> None:
    one, params = engine(), {"max_new_tokens": 10}
    unstopped = one.decode("QQQ", SamplingParams(**params))
    assert "QQQ" not in unstopped.text
    assert one.decode("QQQ", SamplingParams(**params, stop="QQQ")).token_ids == unstopped.token_ids


# How it ends ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_end_of_sequence_token_ends_the_sequence_and_is_reported(engine: MakeEngine, ending: str, mode: str) -> None:
    completion = engine(mode, None if mode == "ar" else "self:2", target=ending).decode(
        PROMPTS[0], SamplingParams(max_new_tokens=200)
    )
    assert completion.finish_reason == "eos"
    assert completion.token_ids[-1] % 8 == 0 and not any(token % 8 == 0 for token in completion.token_ids[:-1])


@pytest.mark.parametrize("mode", MODES)
def test_an_end_of_sequence_token_can_be_ignored(engine: MakeEngine, ending: str, mode: str) -> None:
    one = engine(mode, None if mode == "ar" else "self:2", target=ending)
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    completion = one.decode(PROMPTS[0], params)
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 60
    assert any(token % 8 == 0 for token in completion.token_ids)
    ended = one.decode(PROMPTS[0], SamplingParams(max_new_tokens=60))
    assert completion.token_ids[: len(ended.token_ids)] == ended.token_ids


def test_the_end_of_sequence_token_is_not_in_the_text(engine: MakeEngine) -> None:
    completions = engine().decode(random_prompts([4] * 40), SamplingParams(temperature=1.0, top_k=3, max_new_tokens=150))
    ended = [completion for completion in completions if completion.finish_reason == "eos"]
    assert ended
    assert not any(tiny.END in completion.text for completion in ended)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_that_ends_with_its_first_token_is_complete(engine: MakeEngine, mode: str) -> None:
    completion = engine(mode).decode(PROMPTS[0], SamplingParams(max_new_tokens=1))
    assert (len(completion.token_ids), completion.finish_reason, completion.stats.rounds) == (1, "length", 0)


@pytest.mark.parametrize("mode", MODES)
def test_without_max_new_tokens_a_request_gets_256_or_the_rest_of_the_context(engine: MakeEngine, mode: str) -> None:
    """The context is 512."""
    one, prompts = engine(mode, max_batch=5), random_prompts((3, 256, 257, 412, 511))
    requests = one.requests(prompts, SamplingParams(ignore_eos=True), {})
    assert [request.max_length for request in requests] == [259, 512, 512, 512, 512]
    found = one.decode(prompts, SamplingParams(ignore_eos=True))
    assert [len(completion.token_ids) for completion in found] == [256, 256, 255, 100, 1]
    assert {completion.finish_reason for completion in found} == {"length"}


# Log-probabilities ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(models: Models) -> Callable[[list[int], list[int]], Tensor]:
    """Log-probabilities of a continuation's tokens, [tokens, V], by transformers."""
    model = LlamaForCausalLM.from_pretrained(models.target, dtype=torch.float32).eval()

    def logprobs(prompt: list[int], tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1, : len(VOCABULARY)]
        return torch.log_softmax(logits, dim=-1)

    return logprobs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probabilities_are_the_targets(
    engine: MakeEngine, oracle: Callable[[list[int], list[int]], Tensor], mode: str, temperature: float
) -> None:
    """They belong to the unprocessed distribution of the row that decided the token, whichever row of a round it is."""
    params = SamplingParams(temperature=temperature, top_p=0.9, max_new_tokens=30, seed=4, logprobs=3)
    for prompt, completion in zip(PROMPTS, engine(mode, max_batch=4).decode(PROMPTS, params), strict=True):
        expected = oracle(prompt, completion.token_ids)
        assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
        for token, found, row in zip(completion.token_ids, completion.logprobs, expected, strict=True):
            likeliest = row.topk(3).indices.tolist()
            assert set(found) == {token, *likeliest}
            assert list(found.values()) == pytest.approx([float(row[i]) for i in found], abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_there_are_as_many_log_probabilities_as_tokens(engine: MakeEngine, told: Completion, mode: str) -> None:
    params = SamplingParams(**TELL, stop=told.text[20:23], logprobs=1)
    completion = engine(mode).decode(PROMPTS[0], params)
    assert completion.finish_reason == "stop" and completion.logprobs is not None
    assert [max(row, key=row.__getitem__) for row in completion.logprobs] == completion.token_ids


def test_log_probabilities_are_absent_unless_requested(engine: MakeEngine) -> None:
    params = [SamplingParams(max_new_tokens=4), SamplingParams(max_new_tokens=4, logprobs=1)]
    found = engine("ssd").decode(PROMPTS[:2], params)
    assert found[0].logprobs is None
    assert found[1].logprobs is not None and [len(row) for row in found[1].logprobs] == [1] * 4


# Seeds ------------------------------------------------------------------------------------------------------------------------


SAMPLED = {"temperature": 1.0, "max_new_tokens": 16, "ignore_eos": True}


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_tokens_wherever_its_request_is_in_the_batch(engine: MakeEngine, mode: str) -> None:
    """This is for the neural fallback; after an n-gram only the distribution is guaranteed."""
    seeded = SamplingParams(**SAMPLED, seed=42)
    alone = engine(mode, max_batch=1, fallback="neural").decode(PROMPTS[0], seeded).token_ids
    others = [SamplingParams(**SAMPLED, seed=i) for i in range(5)]
    for index in (0, 2, 5):
        prompts, params = list(PROMPTS[1:]), list(others)
        prompts.insert(index, PROMPTS[0])
        params.insert(index, seeded)
        assert engine(mode, max_batch=4, fallback="neural").decode(prompts, params)[index].token_ids == alone


@pytest.mark.parametrize("mode", MODES)
def test_other_seeds_give_other_tokens(engine: MakeEngine, mode: str) -> None:
    params = [SamplingParams(**SAMPLED, seed=seed) for seed in (0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**33)]
    found = tokens_of(engine(mode).decode([PROMPTS[0]] * len(params), params))
    assert len({tuple(tokens) for tokens in found}) == len(params)


@pytest.mark.parametrize("mode", MODES)
def test_requests_without_a_seed_differ_within_a_call(engine: MakeEngine, mode: str) -> None:
    found = tokens_of(engine(mode).decode([PROMPTS[0]] * 8, SamplingParams(**SAMPLED)))
    assert len({tuple(tokens) for tokens in found}) == 8


@pytest.mark.parametrize("mode", MODES)
def test_requests_without_a_seed_depend_on_the_engines_seed(engine: MakeEngine, mode: str) -> None:
    first, same, other = (
        engine(mode, seed=seed, fallback="neural").decode(PROMPTS, SamplingParams(**SAMPLED)) for seed in (1, 1, 2)
    )
    assert tokens_of(first) == tokens_of(same)
    assert all(a != b for a, b in zip(tokens_of(first), tokens_of(other), strict=True))


def test_greedy_decoding_does_not_depend_on_the_seed(engine: MakeEngine) -> None:
    one = engine("ssd")
    found = [one.decode(PROMPTS[0], SamplingParams(max_new_tokens=16, seed=seed)).token_ids for seed in (None, 1, 2)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("mode", MODES)
def test_serial_calls_without_a_seed_differ_and_a_run_repeats(engine: MakeEngine, mode: str) -> None:
    def run() -> list[list[int]]:
        one = engine(mode, fallback="neural")
        return [one.decode(PROMPTS[0], SamplingParams(**SAMPLED)).token_ids for _ in range(8)]

    first = run()
    assert len({tuple(tokens) for tokens in first}) == 8
    assert run() == first


def test_requests_with_a_seed_do_not_count_among_those_without(engine: MakeEngine) -> None:
    unseeded, seeded = SamplingParams(**SAMPLED), SamplingParams(**SAMPLED, seed=5)
    one, other = engine(), engine()
    expected = tokens_of(one.decode(PROMPTS[:2], unseeded))
    found = tokens_of(other.decode([PROMPTS[0], PROMPTS[2], PROMPTS[1]], [unseeded, seeded, unseeded]))
    assert [found[0], found[2]] == expected


# Stats ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_and_accepted_tokens_make_up_the_sequence(engine: MakeEngine, mode: str, temperature: float) -> None:
    """The first token is the prefill's; each round adds what it accepted and one more."""
    params = SamplingParams(temperature=temperature, max_new_tokens=41, ignore_eos=True)
    for completion in engine(mode).decode(PROMPTS, params):
        assert completion.stats.rounds + accepted_in_all(completion) == len(completion.token_ids) - 1 == 40


def test_autoregressive_stats_have_no_draft_in_them(engine: MakeEngine) -> None:
    stats = engine("ar").decode(PROMPTS[0], SamplingParams(max_new_tokens=9, ignore_eos=True)).stats
    assert (stats.mode, stats.rounds, stats.accepted_per_round, stats.branches_unused) == ("ar", 8, 0, 0)
    assert stats.acceptance_rate is stats.hit_rate is stats.t_draft_ms is stats.t_fallback_ms is stats.hidden_draft_ms is None
    assert stats.hits_per_k == {}
    assert stats.t_verify_ms > 0 and stats.decode_tokens_per_s > 0 and stats.time_to_first_token_s > 0


def test_speculative_stats_have_a_draft_and_no_cache(engine: MakeEngine) -> None:
    stats = engine("sd").decode(PROMPTS[0], SamplingParams(max_new_tokens=40, ignore_eos=True)).stats
    assert stats.mode == "sd"
    assert 0 < stats.acceptance_rate <= 1
    assert stats.t_draft_ms > 0
    assert (stats.hits_per_k, stats.branches_unused, stats.hit_rate, stats.hidden_draft_ms) == ({}, 0, None, None)


def test_ssd_stats_agree_with_each_other(engine: MakeEngine) -> None:
    for completion in engine("ssd", budget=6).decode(PROMPTS, SamplingParams(max_new_tokens=60, ignore_eos=True)):
        stats = completion.stats
        hits, look_ups = (sum(counts) for counts in zip(*stats.hits_per_k.values(), strict=True))
        assert stats.mode == "ssd"
        assert look_ups == stats.rounds - 1  # every round's but the first's
        assert stats.hit_rate == pytest.approx(hits / look_ups)
        assert set(stats.hits_per_k) <= set(range(5))
        assert stats.branches_unused == 6 * stats.rounds - hits
        assert 0 <= stats.hidden_draft_ms <= stats.t_draft_ms


@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_a_draft_that_is_the_target_is_always_accepted(engine: MakeEngine, mode: str) -> None:
    stats = engine(mode, "self:3", lookahead=3).decode(PROMPTS[0], SamplingParams(max_new_tokens=41, ignore_eos=True)).stats
    assert (stats.acceptance_rate, stats.rounds) == (1.0, 10)
    if mode == "ssd":
        assert stats.hits_per_k == {3: (9, 9)}


def test_mode_auto_takes_the_draft_it_is_given(engine: MakeEngine) -> None:
    assert engine("auto", None).mode == "ar"
    assert engine("auto", "draft").mode == "sd"


# The engine itself ------------------------------------------------------------------------------------------------------------


def test_decode_keeps_one_engine_for_the_same_options(models: Models, built: list[Engine]) -> None:
    options = {"target": models.target, "draft": "self:2", "mode": "ssd", "threads": 1, "fan_out": [2, 2, 2, 1, 1]}
    first = ssd.decode(PROMPTS[0], **options, max_new_tokens=8)
    again = ssd.decode(PROMPTS[:2], **options, max_new_tokens=8, temperature=1.0, seed=3)
    assert len(built) == 1
    assert first.stats.mode == "ssd" and len(again) == 2
    ssd.decode(PROMPTS[0], **options | {"mode": "sd"}, max_new_tokens=8)
    assert len(built) == 2


def test_decode_gives_the_tokens_of_an_engine(models: Models, engine: MakeEngine, built: list[Engine]) -> None:
    options = {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 12, "seed": 9}
    found = ssd.decode("the end", models.target, dtype="float32", threads=1, raw=True, **options)
    assert found.token_ids == engine().decode("the end", SamplingParams(**options), raw=True).token_ids


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """The engines that `ssd.decode` builds in this test."""
    engines: list[Engine] = []
    build = Engine.__init__

    @functools.wraps(build)
    def counted(engine: Engine, *arguments: Any, **options: Any) -> None:
        build(engine, *arguments, **options)
        engines.append(engine)

    monkeypatch.setattr(Engine, "__init__", counted)
    ssd.engine._cached_engine.cache_clear()
    yield engines
    ssd.engine._cached_engine.cache_clear()
    for each in engines:
        each.close()


def close(stream: Stream) -> None:
    stream.close()


def forget(stream: Stream) -> None:
    """Its last reference goes with the caller's."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("abandon", [close, forget])
def test_an_abandoned_stream_frees_its_slot_and_pages(engine: MakeEngine, mode: str, abandon: Callable[[Stream], None]) -> None:
    one, params = engine(mode, max_batch=1), SamplingParams(max_new_tokens=50, ignore_eos=True)
    expected = one.decode(PROMPTS[1], params).token_ids
    stream = one.stream(PROMPTS[0], params)
    next(iter(stream))
    assert one.core.scheduler.batch == 1
    abandon(stream)
    del stream
    assert one.core.scheduler.batch == 0
    assert one.decode(PROMPTS[1], params).token_ids == expected
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity


def test_a_stream_that_is_never_read_takes_nothing(engine: MakeEngine) -> None:
    one = engine("ssd", max_batch=1)
    unread = one.stream(PROMPTS[0], SamplingParams(max_new_tokens=50))
    assert len(one.decode(PROMPTS[1], SamplingParams(max_new_tokens=5, ignore_eos=True)).token_ids) == 5
    assert unread.completion is None


def test_a_stream_whose_engine_is_closed_says_so(engine: MakeEngine) -> None:
    one = engine("ssd")
    stream = one.stream(PROMPTS[0], SamplingParams(max_new_tokens=50, ignore_eos=True))
    next(iter(stream))
    one.close()
    with pytest.raises(SsdError, match="closed"):
        list(stream)


@pytest.mark.parametrize(
    "mode,part,method",
    [(mode, "verifier", method) for mode in ("sd", "ssd") for method in ("enter", "verify")]
    + [("sd", "drafter", "draft"), ("ssd", "cache", "look_up")],
)
@pytest.mark.usefixtures("eager_rounds")
def test_an_engine_can_be_used_after_an_interrupt(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str, part: str, method: str
) -> None:
    """At any point, even while the draft's thread is running: pages and slots are released, and no stale work is read later."""
    one, params, calls = engine(mode, max_batch=3), SamplingParams(max_new_tokens=20), [0]
    expected = tokens_of(one.decode(PROMPTS, params))
    work = getattr(getattr(one.core.loop, part), method)

    def interrupted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(getattr(one.core.loop, part), method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.decode(PROMPTS, params)
    assert one.core.scheduler.pages.available == one.core.scheduler.pages.capacity
    found = one.decode(PROMPTS, params)
    assert tokens_of(found) == expected
    assert not any(completion.degraded for completion in found)


def test_an_engine_can_be_used_from_another_thread(engine: MakeEngine) -> None:
    one, params, found = engine("ssd"), SamplingParams(max_new_tokens=12), []
    expected = one.decode(PROMPTS[0], params).token_ids
    thread = threading.Thread(target=lambda: found.append(one.decode(PROMPTS[0], params).token_ids))
    thread.start()
    thread.join()
    assert found == [expected]


def test_loading_reports_its_progress_up_to_the_end(models: Models) -> None:
    fractions: list[float] = []
    with Engine(models.target, threads=1, progress=fractions.append):
        pass
    assert all(a <= b for a, b in pairwise(fractions))
    assert fractions[-1] == 1.0


def test_an_engine_can_be_called_again_and_again(engine: MakeEngine) -> None:
    """A slot keeps nothing of its finished sequence."""
    one = engine("ssd", max_batch=2, fallback="neural")
    for round in range(5):
        prompts = random_prompts((3 + round, 11, 1), seed=10 * round)
        params = SamplingParams(temperature=round % 2, max_new_tokens=12, seed=round)
        fresh = engine("sd" if round % 2 else "ar").decode(prompts, params)
        assert tokens_of(one.decode(prompts, params)) == tokens_of(fresh)


def test_a_long_prompt_fills_its_context(engine: MakeEngine) -> None:
    """Prompt and output end exactly at the last position that the model was trained for, in a batch with shorter ones."""
    length = tiny.SIZES["max_position_embeddings"] - 20
    prompts = [random_prompt(length), *PROMPTS[:3]]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    assert tokens_of(engine("ssd", lookahead=6).decode(prompts, params)) == tokens_of(engine("ar").decode(prompts, params))


@pytest.mark.parametrize("mode", ["ar", "sd", "ssd"])
def test_a_paced_engine_says_so_and_waits_for_each_pass(engine: MakeEngine, mode: str) -> None:
    """The tokens are those of an engine without a pace."""
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    paced = engine(mode, pace=(3.0, 1.0))
    found = paced.decode(PROMPTS[0], params)
    assert (paced.footprint.rounds, engine(mode).footprint.rounds) == ("paced", "recorded")
    assert found.stats.t_verify_ms is not None and found.stats.t_verify_ms >= 3.0
    assert found.token_ids == engine("ar").decode(PROMPTS[0], params).token_ids
