"""A body that cannot be answered is refused in OpenAI's form: one sentence, the field, and a status from 400 to 499."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import tiny
from server.live import MODEL, Live, live
from ssd import Engine, SamplingParams
from ssd.server.protocol import OFF

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "one"}]}
TEXT = {"model": MODEL, "prompt": "one"}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {}}}


def refusal(response: Any, status: int = 400) -> dict[str, Any]:
    """The error object, after checking its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name,) = response.json()
    error: dict[str, Any] = response.json()[name]
    assert name == "error"
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["message"].endswith(".") and ". " not in error["message"] and "\n" not in error["message"]
    return error


CHAT_REFUSALS = {
    "response_format": {"type": "json_object"},
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 10},
    "functions": [{"name": "now"}],
    "parallel_tool_calls": False,
    "modalities": ["text", "audio"],
    "service_tier": "flex",
    "store": True,
    "metadata": {"a": "b"},
    "chat_template": "{{ messages }}",
    "best_of": 3,
    "echo": True,
    "suffix": "end",
    "stop_token_ids": [3],
    "prompt_logprobs": 1,
    "structured_outputs": {"regex": "a"},
}


@pytest.mark.parametrize("field", CHAT_REFUSALS)
def test_a_known_field_that_is_not_supported_is_refused_by_name(served: Live, field: str) -> None:
    error = refusal(served.post("/v1/chat/completions", **CHAT, **{field: CHAT_REFUSALS[field]}))
    assert error["message"] == f"{field} is not supported by this server; leave it out."
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


@pytest.mark.parametrize("field,value", [(field, value) for field, values in OFF.items() for value in (None, *values)], ids=str)
def test_a_value_that_asks_for_nothing_is_taken(served: Live, field: str, value: Any) -> None:
    assert served.chat(max_tokens=1, **{field: value}).status_code == 200


REFUSED = {
    "an unknown field": ("chat", {"max_tokns": 4}, "max_tokns", "not a known field"),
    "an unknown field within": ("chat", {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "known"),
    "no messages": ("chat", {"messages": []}, "messages", "1 item"),
    "a message without role": ("chat", {"messages": [{"content": "a"}]}, "messages[0].role", "missing"),
    "a message without content": ("chat", {"messages": [{"role": "user"}]}, None, "message 1 of the prompt has no content"),
    "a content that is a number": ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "text parts"),
    "an image": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        None,
        "'image_url'",
    ),
    "a text for a number": ("chat", {"max_tokens": "5"}, "max_tokens", "integer"),
    "a number for a switch": ("chat", {"stream": 1}, "stream", "boolean"),
    "no tokens": ("chat", {"max_tokens": 0}, None, "max_tokens is 0; it must be a whole number from 1"),
    "both names of the limit": ("chat", {"max_tokens": 5, "max_completion_tokens": 5}, None, "one of the two"),
    "more tokens than the context": ("chat", {"max_completion_tokens": 600}, None, "max_completion_tokens=600"),
    "a hot temperature": ("chat", {"temperature": 101}, "temperature", "0 to 100"),
    "a top_p over 1": ("chat", {"top_p": 1.5}, "top_p", "0 to 1"),
    "a min_p below 0": ("chat", {"min_p": -0.5}, "min_p", "0 to 1"),
    "a top_k below 0": ("chat", {"top_k": -2}, "top_k", "0 to"),
    "no choice": ("chat", {"n": 0}, "n", "greater than or equal to 1"),
    "too many choices": ("chat", {"n": 129}, "n", "less than or equal to 128"),
    "an empty stop": ("chat", {"stop": ""}, "stop", "not empty"),
    "a stop that is a number": ("chat", {"stop": 5}, "stop", "a string, or a list of up to 16 strings"),
    "too many stops": ("chat", {"stop": ["a"] * 17}, "stop", "up to 16"),
    "a large seed": ("chat", {"seed": 2**70}, "seed", "9223372036854775807"),
    "a broken seed": ("chat", {"seed": 1.5}, "seed", "integer"),
    "top_logprobs alone": ("chat", {"top_logprobs": 2}, None, "needs logprobs=true"),
    "too many top_logprobs": ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    "stream_options without a stream": ("chat", {"stream_options": {"include_usage": True}}, None, "stream=true"),
    "a forced tool": ("chat", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
    "a named tool": ("chat", {"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "'none' or 'auto'"),
    "tools without a place": ("chat", {"tools": [TOOL]}, None, "no place for tools"),
    "a variable that the template lacks": ("chat", {"chat_template_kwargs": {"thinking": True}}, None, "'thinking'"),
    "a template as a variable": ("chat", {"chat_template_kwargs": {"chat_template": "x"}}, None, "'chat_template'"),
    "an empty prompt": ("text", {"prompt": ""}, None, "empty"),
    "an empty list": ("text", {"prompt": []}, None, "empty"),
    "an empty prompt in a list": ("text", {"prompt": ["one", ""]}, None, "prompt 1 of 2: the prompt is empty"),
    "a prompt that is a number": ("text", {"prompt": 5}, "prompt", "a text, a list of token ids"),
    "mixed prompts": ("text", {"prompt": ["one", 5]}, "prompt", "a text, a list of token ids"),
    "an id outside": ("text", {"prompt": [5, 5000]}, None, "token id 5000"),
    "a negative id": ("text", {"prompt": [-1]}, None, "token id -1"),
    "echo with logprobs": ("text", {"echo": True, "logprobs": 1}, None, "echo with logprobs is not supported"),
    "tools for a text": ("text", {"tools": [TOOL]}, "tools", "not a known field"),
    "a batch beyond the queue": ("text", {"prompt": ["a"] * 300}, None, "at most 260 fit"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_value_is_refused_in_one_sentence(served: Live, case: str, stream: bool) -> None:
    """Also of a stream, before its first byte."""
    kind, change, param, says = REFUSED[case]
    path, base = ("/v1/chat/completions", CHAT) if kind == "chat" else ("/v1/completions", TEXT)
    if stream and "stream" not in change and "stream_options" not in change:
        base = base | {"stream": True}
    error = refusal(served.post(path, **(base | change)))
    assert says in error["message"], error["message"]
    assert error["param"] == param or param is None


@pytest.mark.parametrize("path,base", [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)], ids=["chat", "text"])
def test_the_model_must_be_named_rightly(served: Live, path: str, base: dict[str, Any]) -> None:
    error = refusal(served.post(path, **(base | {"model": "gpt-4"})), status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert repr(MODEL) in error["message"]
    error = refusal(served.post(path, **(base | {"model": None})))
    assert error["message"] == "model is missing; give it."


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
    "a text": (b'"a"', "not a JSON object"),
    "half an object": (b'{"model": "a"', "not valid JSON"),
    "two objects": (b"{}{}", "not valid JSON"),
    "UTF-16": ('{"model": "a"}'.encode("utf-16"), "not valid UTF-8"),
    "broken UTF-8": (b'{"model": "\xff"}', "not valid UTF-8"),
    "half a surrogate pair": (b'{"model": "\\ud800"}', "half of a surrogate pair"),
    "half a surrogate pair as a key": (b'{"\\ud800": 1}', "half of a surrogate pair"),
    "NaN": (b'{"temperature": NaN}', "not valid JSON"),
    "Infinity": (b'{"temperature": -Infinity}', "not valid JSON"),
    "a number of 5,000 digits": (b'{"seed": ' + b"1" * 5000 + b"}", "not valid JSON"),
    "65 levels": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 levels"),
    "10,000 levels": (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "more than 64 levels"),
    "100,000 open levels": (b'{"a":' * 100_000, "more than 64 levels"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_is_no_good_json_is_refused(served: Live, case: str) -> None:
    body, says = BODIES[case]
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        error = refusal(served.http.post(path, content=body, headers={"content-type": "application/json"}))
        assert says in error["message"]


def test_64_levels_are_deep_but_read(served: Live) -> None:
    deep = json.loads("[" * 62 + "]" * 62)
    error = refusal(served.post("/v1/chat/completions", **CHAT, chat_template_kwargs={"thinking": deep}))
    assert "'thinking'" in error["message"]


@pytest.mark.parametrize("media", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json_is_refused(served: Live, media: str | None) -> None:
    """A page in a browser can send such a body to this server without asking it first."""
    headers = {"content-type": media} if media else {}
    response = served.http.post("/v1/completions", content=json.dumps(TEXT).encode(), headers=headers)
    assert "'Content-Type: application/json'" in refusal(response, status=415)["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused(served: Live, chunked: bool) -> None:
    def parts() -> Any:
        for _ in range(100):
            yield b" " * 10**6

    headers = {"content-type": "application/json"} | ({} if chunked else {"content-length": str(10**8)})
    response = served.http.post("/v1/completions", content=parts(), headers=headers)
    assert "4000000 bytes" in refusal(response, status=413)["message"]
    assert served.complete().status_code == 200


@pytest.mark.parametrize(
    "method,path,status",
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/completions/", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ],
)
def test_a_wrong_path_or_method_is_refused(served: Live, method: str, path: str, status: int) -> None:
    refusal(served.http.request(method, path), status=status)


def test_headers_over_16_kb_are_refused(served: Live) -> None:
    """Also where they arrive in one piece."""
    assert "16384 bytes" in refusal(served.http.get("/health", headers={"x-long": "x" * 17_000}), status=431)["message"]
    assert "16384 bytes" in refusal(served.http.get("/health?" + "x" * 17_000), status=431)["message"]
    assert served.http.get("/health", headers={"x-long": "x" * 15_000}).status_code == 200


def test_texts_and_tokens_are_turned_into_each_other(served: Live) -> None:
    """ "th", "e", " ", "on", "e"; the chat template adds the user's token, the end's and the assistant's."""
    tokens = served.post("/tokenize", prompt="the one").json()
    assert tokens == {"tokens": [259, 71, 223, 265, 71], "count": 5, "max_model_len": 512}
    assert served.post("/detokenize", tokens=tokens["tokens"]).json() == {"prompt": "the one"}
    chat = served.post("/tokenize", messages=[{"role": "user", "content": "the one"}]).json()
    assert chat["tokens"] == [1, *tokens["tokens"], 0, 2]


def test_what_cannot_be_turned_into_tokens_is_refused(served: Live) -> None:
    assert "one of the two" in refusal(served.post("/tokenize"))["message"]
    assert "id 5000" in refusal(served.post("/detokenize", tokens=[5000]))["message"]
    assert "empty" in refusal(served.post("/tokenize", prompt=""))["message"]
    refusal(served.post("/tokenize", prompt="a", model="another"), status=404)
    refusal(served.post("/tokenize", prompt="a", add_special_tokens=True))


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "silent")
    engine = Engine(str(tmp_path / "silent"), None, dtype="float32", threads=1)
    body = {"model": "silent", "max_tokens": 3, "temperature": 0}
    with live(engine) as served:
        truth = engine.decode([5, 6], SamplingParams(max_new_tokens=3)).token_ids
        choice = served.post("/v1/completions", **body, prompt=[5, 6], logprobs=1).json()["choices"][0]
        assert choice["text"] == ""
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in truth]
        for change in ({"prompt": "text"}, {"prompt": [5], "echo": True}, {"prompt": [5], "stop": "a"}):
            message = refusal(served.post("/v1/completions", **body, **change))["message"]
            assert "no tokenizer" in message and str(tmp_path) not in message
        refusal(served.post("/v1/chat/completions", **body, messages=[{"role": "user", "content": "a"}]))
        refusal(served.post("/detokenize", tokens=[5]))
