"""OpenAI's own client, against a real server: what it sends is understood, and what it gets is the engine's text."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

import openai

import tiny
from server.live import MODEL, Live, live
from ssd import Completion, Engine, SamplingParams

Client = Any

GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}
CHAT = [{"role": "user", "content": "the one"}]
PARAMS = SamplingParams(max_new_tokens=12)


@pytest.fixture
def client(served: Live) -> Iterator[Client]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as each:
        yield each


@pytest.fixture(scope="module")
def expected(alone: Engine) -> Completion:
    """The answer to CHAT."""
    return alone.decode(CHAT, PARAMS)


def reason_of(completion: Completion) -> str:
    return {"eos": "stop", "stop": "stop", "length": "length"}[completion.finish_reason]


def test_a_chat_is_answered(client: Client, expected: Completion) -> None:
    answer = client.chat.completions.create(messages=CHAT, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == reason_of(expected)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_is_streamed(client: Client, expected: Completion) -> None:
    chunks = list(client.chat.completions.create(messages=CHAT, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, reason_of(expected)]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_the_usage_of_a_stream_comes_last_and_alone(client: Client, expected: Completion) -> None:
    chunks = list(client.chat.completions.create(messages=CHAT, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_asynchronous_client_gets_the_same(served: Live, expected: Completion) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(messages=CHAT, **GREEDY)
            stream = await client.chat.completions.create(messages=CHAT, stream=True, **GREEDY)
            return whole.choices[0].message.content, "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(both()) == (expected.text, expected.text)


def test_content_parts_are_joined(client: Client, expected: Completion) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "one"}]
    answer = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **GREEDY)
    assert answer.choices[0].message.content == expected.text


def test_the_answers_newer_name_of_the_limit_is_known(client: Client) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_completion_tokens=3)
    assert answer.usage.completion_tokens <= 3


def test_n_choices_are_different_samples_and_the_seed_repeats_them(client: Client, alone: Engine) -> None:
    def sample(stream: bool) -> list[str]:
        options = {"model": MODEL, "messages": CHAT, "temperature": 1, "max_tokens": 12, "n": 3, "seed": 7}
        answer = client.chat.completions.create(stream=stream, **options)
        if not stream:
            assert [choice.index for choice in answer.choices] == [0, 1, 2]
            return [choice.message.content for choice in answer.choices]
        texts = ["", "", ""]
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return texts

    texts = sample(False)
    assert len(set(texts)) == 3
    assert sample(False) == sample(True) == texts


def test_a_stop_string_ends_the_text(client: Client, expected: Completion) -> None:
    stop = expected.text[3:5]
    answer = client.chat.completions.create(messages=CHAT, stop=stop, **GREEDY)
    assert answer.choices[0].message.content == expected.text[: expected.text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_of_a_chat_are_the_engines(client: Client, alone: Engine) -> None:
    truth = alone.decode(CHAT, SamplingParams(max_new_tokens=12, logprobs=3))
    answer = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=3, **GREEDY)
    entries = answer.choices[0].logprobs.content
    assert truth.logprobs is not None
    assert len(entries) == len(truth.token_ids)
    for entry, token, row in zip(entries, truth.token_ids, truth.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[token])
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(sorted(row.values(), reverse=True)[:3])
        if "\N{REPLACEMENT CHARACTER}" not in entry.token:
            assert bytes(entry.bytes).decode() == entry.token
    streamed = client.chat.completions.create(messages=CHAT, logprobs=True, stream=True, **GREEDY)
    choices = [chunk.choices[0] for chunk in streamed]
    seen = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in seen] == [entry.token for entry in entries]
    assert all(entry.top_logprobs == [] for entry in seen)


def test_a_completion_continues_raw_text(client: Client, alone: Engine) -> None:
    truth = alone.decode("the one", SamplingParams(max_new_tokens=12), raw=True)
    answer = client.completions.create(prompt="the one", **GREEDY)
    assert answer.choices[0].text == truth.text
    assert answer.object == "text_completion"
    streamed = client.completions.create(prompt="the one", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed) == truth.text


@pytest.mark.parametrize(
    "prompt,count",
    [("the", 1), ([260, 261], 1), (["the", "one"], 2), ([[260, 261], [262]], 2)],
    ids=["text", "ids", "texts", "id lists"],
)
def test_a_prompt_may_be_a_text_ids_or_a_list_of_them(client: Client, alone: Engine, prompt: Any, count: int) -> None:
    truth = alone.decode(prompt, PARAMS, raw=True)
    answer = client.completions.create(prompt=prompt, **GREEDY)
    texts = [one.text for one in (truth if isinstance(truth, list) else [truth])]
    assert [choice.text for choice in answer.choices] == texts
    assert len(texts) == count


def test_two_choices_of_two_prompts_stand_next_to_each_other(client: Client, alone: Engine) -> None:
    first, second = alone.decode(["the", "one"], PARAMS, raw=True)
    answer = client.completions.create(prompt=["the", "one"], n=2, **GREEDY)
    assert [choice.text for choice in answer.choices] == [first.text, first.text, second.text, second.text]
    assert answer.usage.prompt_tokens == 2 + 2  # each prompt counts once: "th" "e", and "on" "e"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_first(client: Client, alone: Engine, stream: bool) -> None:
    truth = alone.decode("the one", PARAMS, raw=True)
    answer = client.completions.create(prompt="the one", echo=True, stream=stream, **GREEDY)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == "the one" + truth.text


def test_logprobs_of_a_completion_are_the_engines(client: Client, alone: Engine) -> None:
    truth = alone.decode("the one", SamplingParams(max_new_tokens=12, logprobs=2), raw=True)
    assert truth.logprobs is not None
    answer = client.completions.create(prompt="the one", logprobs=2, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx(
        [row[token] for token, row in zip(truth.token_ids, truth.logprobs, strict=True)]
    )
    assert all(1 <= len(top) <= 2 for top in logprobs.top_logprobs)
    ends = [offset + len(token) for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)]
    assert logprobs.text_offset == [0, *ends[:-1]]
    streamed = [chunk.choices[0] for chunk in client.completions.create(prompt="the one", logprobs=0, stream=True, **GREEDY)]
    seen = [choice.logprobs for choice in streamed if choice.logprobs]
    assert [offset for each in seen for offset in each.text_offset] == logprobs.text_offset
    assert {top for each in seen for top in each.top_logprobs} == {None}


def test_fields_of_ours_go_in_the_extra_body(client: Client, alone: Engine) -> None:
    params = SamplingParams(temperature=0.9, top_k=5, min_p=0.05, ignore_eos=True, max_new_tokens=12, seed=3)
    truth = alone.decode(CHAT, params).text
    extra = {"top_k": 5, "min_p": 0.05, "ignore_eos": True}
    answers = [
        client.chat.completions.create(model=MODEL, messages=CHAT, temperature=0.9, max_tokens=12, seed=3, extra_body=extra)
        for _ in range(2)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.completion_tokens == 12
    assert len(truth) > 0


@pytest.fixture(scope="module")
def with_tools(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with a template that shows tools, and a variable of its own."""
    path = tmp_path_factory.mktemp("templates") / "tools"
    shutil.copytree(target, path)
    shown = "{% if tools %}{{ tools | tojson }}{% endif %}{% if loud %}HEAR{% endif %}"
    (path / "chat_template.jinja").write_text(shown + tiny.CHAT_TEMPLATE)
    return path


def test_the_template_shows_tools_and_variables(with_tools: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}]
    engine = Engine(str(with_tools), None, dtype="float32", threads=1)
    plain, shown, loud = (
        engine.decode(CHAT, PARAMS, **form).text for form in ({}, {"tools": tools}, {"chat_template_kwargs": {"loud": True}})
    )
    assert len({plain, shown, loud}) == 3
    with live(engine) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def text(**fields: Any) -> str:
            answer = client.chat.completions.create(messages=CHAT, **(GREEDY | {"model": "tools"} | fields))
            return answer.choices[0].message.content

        assert text(tools=tools) == text(tools=tools, tool_choice="auto") == shown
        assert text(tools=tools, tool_choice="none") == text() == plain
        assert text(extra_body={"chat_template_kwargs": {"loud": True}}) == loud


def test_a_last_message_of_the_assistant_is_continued(client: Client, alone: Engine) -> None:
    chat = [*CHAT, {"role": "assistant", "content": "on"}]
    answer = client.chat.completions.create(messages=chat, **GREEDY)
    assert answer.choices[0].message.content == alone.decode(chat, PARAMS).text


def test_the_models_are_listed(client: Client) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_an_error_is_the_clients_own_error(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=CHAT, presence_penalty=1.5, **GREEDY)
    assert refused.value.param == "presence_penalty"
    assert refused.value.code == "unsupported_parameter"
    assert "presence_penalty is not supported by this server; leave it out." in refused.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**(GREEDY | {"messages": CHAT, "model": "another"}))
