"""docs/serving.md is right: its examples run, and it names every field, path, figure and limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from server.live import MODEL, Live
from ssd.server import connection, protocol
from ssd.server.access import MAX_HEADER_BYTES, OPEN_PATHS
from ssd.server.bodies import MAX_DEPTH

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CURL = re.search(r"-d '(\{.*?\})'\n", PAGE, re.DOTALL)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_clients_example_runs(served: Live, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    exec(EXAMPLES[0].replace("http://127.0.0.1:8000", served.url).replace("smollm2-135m", MODEL), {})
    assert capsys.readouterr().out


def test_the_example_of_the_async_engine_runs(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[1].replace('"smollm2-135m"', f"{str(target)!r}, {str(target.parent / 'tiny-draft')!r}"), {})
    assert re.search(r"[\d.]+\n$", capsys.readouterr().out)


def test_the_example_of_curl_is_answered(served: Live) -> None:
    assert CURL is not None
    body = CURL[1].replace("smollm2-135m", MODEL).encode()
    answer = served.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.json()["object"] == "chat.completion"


def test_the_example_of_an_error_is_the_servers(served: Live) -> None:
    assert served.complete(top_p=1.5).json()["error"]["message"] in section("Errors")


@pytest.mark.parametrize("body", [protocol.ChatBody, protocol.CompletionBody])
def test_every_field_is_named(body: type[protocol.Body]) -> None:
    named = set(re.findall(r"`([a-z_]+)", section("Fields")))
    assert sorted(set(body.model_fields) - named) == []


def test_every_path_and_figure_is_named(served: Live) -> None:
    served.complete()
    figures = {re.sub(r"(_bucket|_count|_sum|_created)?(\{.*)?$", "", name).removeprefix("ssd:") for name in served.figures()}
    named = re.findall(r"`([a-z0-9_]+)", section("Figures"))
    assert sorted(name for name in figures if name not in named and f"{name}_total" not in named) == []
    for path in re.findall(r"`(?:GET|POST) ([^`,]+)`", section("Paths")):
        assert served.http.request("POST", path.replace("NAME", MODEL)).status_code != 404
    assert all(f"`{path}`" in section("Access") for path in OPEN_PATHS)


def test_the_limits_are_those_of_the_code() -> None:
    assert f"nested over {MAX_DEPTH} levels" in PAGE
    assert f"at most {protocol.MAX_CHOICES} choices" in PAGE
    assert f"up to {protocol.MAX_STOPS} " in PAGE and f"up to {protocol.MAX_TOP_LOGPROBS} likeliest" in PAGE
    assert f"within {connection.REQUEST_SECONDS:g} s, with at most {MAX_HEADER_BYTES // 1024} kB of headers" in PAGE
    assert f"takes nothing for {connection.READ_SECONDS:g} s" in PAGE
