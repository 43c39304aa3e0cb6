"""Hundreds of requests of every kind at once: each completed text is the one decoded alone, and nothing is lost or leaked."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from server.cases import eventually, is_idle_and_whole
from server.conftest import MakeEngine
from server.live import MODEL, Live, live
from ssd import Engine, SamplingParams

REQUESTS, AT_ONCE = 400, 16
KINDS = {"whole": 55, "stream": 30, "dropped": 10, "malformed": 5}  # percent
MALFORMED = [b"{", b"\xff", b'{"model":"tiny-chat"}', b'{"model":"tiny-chat","prompt":"a","logit_bias":{"1":1}}', b"[" * 10_000]

Job = tuple[str, list[int], int]  # kind, prompt, tokens


def jobs() -> list[Job]:
    random_numbers = random.Random(5)
    texts = [
        ([random_numbers.randrange(3, 275) for _ in range(random_numbers.randint(1, 300))], random_numbers.randint(1, 64))
        for _ in range(40)
    ]
    kinds = random_numbers.choices(list(KINDS), weights=list(KINDS.values()), k=REQUESTS)
    return [(kind, *random_numbers.choice(texts)) for kind in kinds]


async def answer(client: httpx.AsyncClient, job: Job) -> str | None:
    """The text of the answer; None for a request that was dropped or refused, as it should be."""
    kind, prompt, tokens = job
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": kind in ("stream", "dropped")}
    path, headers = "/v1/completions", {"content-type": "application/json"}
    if kind == "malformed":
        refused = await client.post(path, content=MALFORMED[tokens % len(MALFORMED)], headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"]["type"] == "invalid_request_error"
        return None
    if kind == "whole":
        return str((await client.post(path, json=body)).raise_for_status().json()["choices"][0]["text"])
    text, ended = "", False
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line and kind == "dropped":
                return None
            ended = ended or line == "data: [DONE]"
            if line and not ended:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert ended
    return text


async def answers(served: Live, given: list[Job]) -> list[str | None]:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, job: Job) -> str | None:
        async with at_once:
            return await answer(client, job)

    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as client:
        return list(await asyncio.gather(*(one(client, job) for job in given)))


@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_every_completed_text_is_the_one_decoded_alone(engine: MakeEngine, alone: Engine, mode: str) -> None:
    given, texts = jobs(), dict[Any, str]()
    for _, prompt, tokens in given:
        if (tuple(prompt), tokens) not in texts:
            texts[tuple(prompt), tokens] = alone.decode(prompt, SamplingParams(max_new_tokens=tokens)).text
    counts = Counter(kind for kind, _, _ in given)
    assert all(counts[kind] > 10 for kind in KINDS)
    one = engine(mode=mode)
    with live(one) as served:
        got = asyncio.run(answers(served, given))
        for (kind, prompt, tokens), text in zip(given, got, strict=True):
            assert text == (texts[tuple(prompt), tokens] if kind in ("whole", "stream") else None)
        eventually(lambda: served.engine.running == served.engine.waiting == 0)
        figures = served.figures()
        ended = sum(value for name, value in figures.items() if name.startswith("ssd:requests_ended_total"))
        assert ended == REQUESTS - counts["malformed"]
        assert figures["ssd:kv_pages_in_use"] == 0
        assert served.http.get("/health").json() == {"status": "ok"}
    assert is_idle_and_whole(one)
