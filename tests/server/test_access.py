"""Who may ask, what a request is called, and what the log and the errors give away."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from server.conftest import MakeEngine
from server.live import MODEL, Live, live
from ssd.errors import SsdError
from ssd.server.options import ServerOptions
from ssd.server.run import api_key, listen

PATHS = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")]
PATHS += [("POST", "/detokenize"), ("GET", "/metrics"), ("GET", "/nothing")]


def test_the_server_is_for_this_machine_alone_unless_told() -> None:
    assert ServerOptions().host == "127.0.0.1"
    with listen(ServerOptions(port=0)) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_a_small_answer_is_sent_at_once() -> None:
    """asyncio turns Nagle's algorithm off only for a socket that names its protocol."""
    with listen(ServerOptions(port=0)) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_an_address_in_use_is_refused_before_anything_loads() -> None:
    with listen(ServerOptions(port=0)) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(
            SsdError, match=rf"^the server cannot listen at 127\.0\.0\.1:{port} \(.*\); choose another --host or --port\.$"
        ):
            listen(ServerOptions(port=port))


def test_without_the_key_nothing_but_health_is_answered(engine: MakeEngine) -> None:
    with live(engine(), api_key="open-sesame") as served:
        for method, path in PATHS:
            for given in (
                {},
                {"authorization": "Bearer open-sesam"},
                {"authorization": "Basic open-sesame"},
                {"api-key": "open-sesame"},
            ):
                response = served.http.request(method, path, headers=given)
                assert response.status_code == 401, (path, given)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert served.http.get("/health").json() == {"status": "ok"}
        served.http.headers["authorization"] = "Bearer open-sesame"
        assert served.complete().status_code == 200
        assert served.http.get("/metrics").status_code == 200


def test_the_key_comes_from_the_option_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSD_API_KEY", raising=False)
    assert api_key(ServerOptions()) is None
    monkeypatch.setenv("SSD_API_KEY", "of-the-environment")
    assert api_key(ServerOptions()) == "of-the-environment"
    (tmp_path / "key").write_text("of-the-file\n")
    assert api_key(ServerOptions(api_key_file=str(tmp_path / "key"))) == "of-the-file"
    assert api_key(ServerOptions(api_key="of-the-option")) == "of-the-option"


def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty key would be no key, and a server without a key is open."""
    with pytest.raises(SsdError, match=r"^the API key cannot be read from .*; give a text file\.$"):
        api_key(ServerOptions(api_key_file=str(tmp_path / "missing")))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SsdError, match=r"^the key of --api-key-file is empty, .*\.$"):
        api_key(ServerOptions(api_key_file=str(tmp_path / "empty")))
    for key in ("", "two words", "clé", "a\nb"):
        with pytest.raises(SsdError, match=r"^the key of --api-key is empty, .*\.$"):
            api_key(ServerOptions(api_key=key))
    monkeypatch.setenv("SSD_API_KEY", "")
    with pytest.raises(SsdError, match=r"^the key of SSD_API_KEY is empty, .*\.$"):
        api_key(ServerOptions())
    with pytest.raises(SsdError, match=r"^there are an api_key and an api_key_file; give one of the two\.$"):
        ServerOptions(api_key="a", api_key_file="b")


def test_pages_of_other_origins_are_not_let_in_unless_named(engine: MakeEngine, served: Live) -> None:
    ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
    refused = served.http.options("/v1/completions", headers=ask)
    assert refused.status_code == 405
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-origin" not in served.http.get("/health", headers=ask).headers
    with live(engine(), cors_origin=("https://page.example",), api_key="open-sesame") as open_to_one:
        allowed = open_to_one.http.options("/v1/completions", headers=ask)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://page.example")
        other = open_to_one.http.options("/v1/completions", headers=ask | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("given,kept", [("my-request:7", True), (None, False), ("two words", False), ("x" * 129, False)])
def test_a_request_has_an_id(served: Live, given: str | None, kept: bool) -> None:
    response = served.http.get("/health", headers={"x-request-id": given} if given else {})
    if kept:
        assert response.headers["x-request-id"] == given
    else:
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_each_request_is_one_line_in_the_log(engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ssd.access"), live(engine()) as served:
        served.complete("a secret word")
        served.complete("a secret word", stream=True)
        served.complete("a secret word", frequency_penalty=1)
        served.http.get("/noth%0Aing?secret=word", headers={"x-forwarded-for": "me status=200", "x-request-id": "a b"})
    lines = [record.getMessage() for record in caplog.records if record.name == "ssd.access"]
    lines = [line for line in lines if "path=/health" not in line]  # asked until the server is ready
    form = r"time=\S+Z client=127\.0\.0\.1 method=(\S+) path=(\S+) status=(\d+) seconds=\d+\.\d{3} id=[0-9a-f]{32}"
    seen = [re.fullmatch(form, line) for line in lines]
    assert [each and each.groups() for each in seen] == [
        ("POST", "/v1/completions", "200"),
        ("POST", "/v1/completions", "200"),
        ("POST", "/v1/completions", "400"),
        ("GET", "/noth%0Aing", "404"),
    ]
    assert "secret" not in " ".join(lines)


def test_an_error_inside_names_no_path_no_line_and_no_prompt(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError(f"{arguments} in /usr/lib/secret.py")

    one = engine()
    with live(one) as served:
        monkeypatch.setattr(one.target_model, "forward", fail)
        whole = served.complete("a secret word")
        assert whole.status_code == 500
        assert whole.headers["x-should-retry"] == "false"
        assert whole.json()["error"]["type"] == "server_error"
        streamed = served.complete("a secret word", stream=True)
        assert streamed.status_code == 200
        assert '"code":"engine_error"' in streamed.text and streamed.text.endswith("data: [DONE]\n\n")
        shown = (
            whole.text
            + streamed.text
            + " ".join(record.getMessage() for record in caplog.records)
            + "".join(capfd.readouterr())
        )
    for secret in ("secret", "Traceback", ".py", "/usr"):
        assert secret not in shown


def test_the_targets_path_is_never_shown(served: Live, target: Path) -> None:
    """The target is a folder; clients know its last part."""
    shown = served.http.get("/v1/models").text + served.complete(max_tokens=5000).text + served.complete(model="x").text
    assert MODEL in shown
    assert str(target) not in shown and str(target.parent) not in shown


def test_an_ended_server_has_closed_its_engine(engine: MakeEngine) -> None:
    one = engine()
    with live(one) as served:
        assert served.complete().status_code == 200
    assert served.engine.state == "failed"
    with pytest.raises(SsdError, match=r"^this engine is closed; make another one\.$"):
        one.decode("one")


def test_the_served_name_can_be_chosen(engine: MakeEngine) -> None:
    with live(engine(), served_model_name="my model") as served:
        assert served.complete(model="my model").json()["model"] == "my model"
        assert served.complete().status_code == 404


def test_the_fingerprint_follows_the_speculation(engine: MakeEngine) -> None:
    prints = set()
    for options in ({}, {"lookahead": 2}, {"saguaro_c": 0.5}, {"mode": "ar"}):
        with live(engine(**options)) as served:
            one, other = (served.complete().json()["system_fingerprint"] for _ in range(2))
            assert re.fullmatch(r"fp_[0-9a-f]{16}", one) and one == other
            prints.add(one)
    assert len(prints) == 4
