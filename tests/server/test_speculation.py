"""`stream_options.include_speculation`: a chunk for each round, which says where each token of the text came from."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")

from server.conftest import MakeEngine
from server.live import Live, live
from ssd import Engine, SamplingParams
from ssd.decoding.stats import Committed
from ssd.server.reader import Reader

PROMPT = "the one and the other"
SAID = {"stream": True, "stream_options": {"include_speculation": True}}
MODES: dict[str, dict[str, Any]] = {
    "ar": {"mode": "ar", "draft": None},
    "sd": {"mode": "sd"},
    "ssd": {"mode": "ssd", "fan_out": "uniform", "fallback": "neural"},
}


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.raise_for_status().text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def choices(served: Live, index: int = 0, **body: Any) -> list[dict[str, Any]]:
    """The chunks of one choice that have a round."""
    found = [event["choices"][0] for event in events(served.complete(PROMPT, **(SAID | body)))]
    return [choice for choice in found if choice["index"] == index]


@pytest.mark.parametrize("mode", MODES)
def test_the_rounds_are_those_of_the_completion(engine: MakeEngine, mode: str) -> None:
    one: Engine = engine(**MODES[mode])
    truth = one.decode(PROMPT, SamplingParams(max_new_tokens=60, ignore_eos=True), raw=True)
    with live(one) as served:
        chunks = choices(served, max_tokens=60, ignore_eos=True)
    rounds = [chunk["speculation"] for chunk in chunks if "speculation" in chunk]
    first, *later = rounds
    assert first == {"proposed": 0, "accepted": 0, "hit": None, "tokens": first["tokens"]}
    assert len(later) == truth.stats.rounds
    assert sum(each["accepted"] for each in later) == round(truth.stats.accepted_per_round * len(later))
    assert sum(len(each["tokens"]) for each in rounds) == len(truth.token_ids) == 60
    for each in later:
        origins = [token["origin"] for token in each["tokens"]]
        drafted = "cache" if each["hit"] else "draft"
        assert origins == [drafted] * each["accepted"] + ["target"] * (len(origins) - each["accepted"])
        assert len(origins) - each["accepted"] in (0, 1)
        assert each["accepted"] <= each["proposed"] <= (0 if mode == "ar" else 4)
    hits = [each["hit"] for each in later]
    if mode == "ssd":
        assert hits[0] is None and {*hits[1:]} == {True, False}  # before the first round, there are no guesses
        assert sum(hits[1:]) / len(hits[1:]) == truth.stats.hit_rate
    else:
        assert set(hits) == {None}


def test_the_characters_of_the_tokens_are_those_of_the_text(engine: MakeEngine) -> None:
    """Text that may become a stop string comes in a later chunk, and so does a character that is not complete."""
    with live(engine(**MODES["ssd"])) as served:
        for seed in range(12):
            chunks = choices(served, max_tokens=60, ignore_eos=True, temperature=1, seed=seed, stop=["zq", "th"])
            counted = sent = 0
            for chunk in chunks:
                if "speculation" in chunk:  # the last chunk may only have a text that waited
                    counted += sum(token["characters"] for token in chunk["speculation"]["tokens"])
                sent += len(chunk["text"])
                assert sent <= counted
            assert sent == counted


def test_the_text_is_the_same_with_and_without_rounds(served: Live) -> None:
    plain = served.complete(PROMPT, max_tokens=40).json()["choices"][0]
    chunks = choices(served, max_tokens=40)
    assert "".join(chunk["text"] for chunk in chunks) == plain["text"]
    assert chunks[-1]["finish_reason"] == plain["finish_reason"]
    assert all("speculation" not in event["choices"][0] for event in events(served.complete(PROMPT, stream=True)))


def test_chats_and_several_choices_have_rounds_too(served: Live) -> None:
    body = {"max_tokens": 20, "ignore_eos": True, "temperature": 1, "seed": 3, "n": 2, "logprobs": True} | SAID
    found = [event["choices"][0] for event in events(served.chat(PROMPT, **body))]
    for index in (0, 1):
        opening, *rounds = [choice for choice in found if choice["index"] == index]
        assert "speculation" not in opening
        rounds = [each for each in rounds if "speculation" in each]
        assert sum(len(each["speculation"]["tokens"]) for each in rounds) == 20
        assert all(len(each["logprobs"]["content"]) == len(each["speculation"]["tokens"]) for each in rounds)


def test_it_is_only_for_streams(served: Live) -> None:
    refused = served.complete(PROMPT, stream_options={"include_speculation": True})
    assert refused.status_code == 400 and "stream=true" in refused.json()["error"]["message"]


def test_a_round_waits_for_its_logprobs(engine: MakeEngine) -> None:
    """The engine appends a round's tokens first and their log-probabilities last; a reader may look between the two."""
    one = engine()

    async def look() -> None:
        (request,) = one.requests([[1, 2, 3]], SamplingParams(max_new_tokens=9, logprobs=1), {})
        with Reader(one, request, 100, None, by_round=True) as reader:
            request.append([4])
            request.stats.started()
            assert reader._take(False).committed is None
            request.append_logprobs(torch.zeros(1, 300), 0)
            chunk = reader._take(False)
            assert chunk.committed == Committed(1) and chunk.token_ids == [4] and chunk.logprobs is not None

    asyncio.run(look())
