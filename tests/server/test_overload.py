"""Too many requests, clients that leave or stall, a draft that fails, the end of the server: other answers stay right."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from server.cases import Gate, eventually, is_idle_and_whole
from server.conftest import MakeEngine
from server.live import MODEL, Live, live
from ssd import Engine, SamplingParams
from ssd.server import connection

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["one", "the other", "and a third one", "four"] * 3
LONG = {"model": MODEL, "prompt": "one", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
ABORTED = 'ssd:requests_ended_total{finished_reason="aborted"}'


def texts_alone(alone: Engine, tokens: int) -> list[str]:
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    return [completion.text for completion in alone.decode(PROMPTS, params, raw=True)]


def raw_request(port: int, body: bytes, receive_buffer: int | None = None) -> socket.socket:
    """A connection on which this completion was asked for."""
    connected = socket.socket()
    if receive_buffer is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connected.connect(("127.0.0.1", port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connected.sendall(head.encode() + body)
    return connected


def rest_of(connected: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while part := connected.recv(65536):
            received += part
    return received


def test_a_full_queue_gives_503_and_says_when_to_come_back(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_batch=1)
    gate = Gate(one, monkeypatch)
    with live(one, max_waiting=2) as served, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(served.complete, prompt) for prompt in PROMPTS[:3]]
        eventually(lambda: served.engine.waiting == 3)
        for stream in (False, True):
            refused = served.complete(PROMPTS[3], stream=stream)
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "overloaded"
        gate.open()
        assert [answer.result().status_code for answer in accepted] == [200] * 3
        assert served.complete(PROMPTS[3]).status_code == 200


def test_a_request_over_its_deadline_gives_504(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    gate = Gate(one, monkeypatch)
    with live(one, deadline=0.1) as served:
        late = served.complete()
        gate.open()
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_passed")
        assert late.headers["x-should-retry"] == "false"
        eventually(lambda: is_idle_and_whole(one))


@pytest.mark.parametrize("stream", [b"false", b"true"], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_slot(
    engine: MakeEngine, alone: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bytes
) -> None:
    caplog.set_level(logging.INFO, logger="ssd.access")
    one = engine(max_batch=1)
    gate = Gate(one, monkeypatch)
    body = b'{"model":"tiny-chat","prompt":"one","max_tokens":400,"ignore_eos":true,"stream":%b}' % stream
    with live(one) as served:
        leaving = raw_request(served.port, body)
        eventually(lambda: served.engine.waiting == 1)
        leaving.close()
        eventually(lambda: not one.core.scheduler.busy and not served.server.server_state.connections)
        eventually(lambda: len(caplog.records) == 1)
        assert " status=499 " in caplog.text and "error=" not in caplog.text
        gate.open()
        assert served.complete(max_tokens=20, ignore_eos=True).json()["choices"][0]["text"] == texts_alone(alone, 20)[0]
        assert served.figures()[ABORTED] == 1
    assert is_idle_and_whole(one)


def test_a_client_that_leaves_in_mid_stream_frees_its_slot(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_batch=1)
    gate = Gate(one, monkeypatch)
    with live(one) as served:
        gate.let(20)
        with served.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            pieces = response.iter_bytes()  # held, because its end closes the connection
            next(pieces)
            eventually(lambda: gate.stepped(lambda: served.engine.running == 1))
        eventually(lambda: gate.stepped(lambda: served.engine.running == 0))
        gate.open()
        assert served.complete().status_code == 200
        assert served.figures()[ABORTED] == 1
    assert is_idle_and_whole(one)


@pytest.mark.usefixtures("eager_rounds")
def test_a_client_that_does_not_read_holds_up_nobody_and_learns_why_its_stream_ended(engine: MakeEngine, alone: Engine) -> None:
    one = engine(max_batch=2)
    expected = texts_alone(alone, 30)
    with live(one, max_unread=20, send_buffer=4096) as served:
        body = b'{"model":"tiny-chat","prompt":"one","max_tokens":400,"ignore_eos":true,"stream":true,"n":8}'
        stalled = raw_request(served.port, body, receive_buffer=4096)
        answers = [served.complete(prompt, max_tokens=30, ignore_eos=True) for prompt in PROMPTS]
        assert [answer.json()["choices"][0]["text"] for answer in answers] == expected
        eventually(lambda: is_idle_and_whole(one))
        received = b""
        while b"data: [DONE]" not in received:
            received += stalled.recv(65536)
        stalled.close()
    assert b'"code":"slow_reader"' in received
    assert b"tokens of the stream were left unread, and the limit is 20" in received


def test_a_client_that_never_reads_is_cut_off(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.2)
    with live(engine(max_batch=2), send_buffer=4096) as served:
        body = b'{"model":"tiny-chat","prompt":"one","max_tokens":400,"ignore_eos":true,"stream":true,"n":8}'
        stalled = raw_request(served.port, body, receive_buffer=4096)
        eventually(lambda: len(served.server.server_state.connections) == 1)
        eventually(lambda: len(served.server.server_state.connections) == 0)
        assert b"[DONE]" not in rest_of(stalled)
        stalled.close()


def test_idle_and_unfinished_connections_hold_up_nobody_and_are_closed(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    unfinished = [b"", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"]
    unfinished.append(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    with live(engine()) as served:
        connections = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
        for index, each in enumerate(connections):
            each.sendall(unfinished[index % 3])
        assert served.complete().status_code == 200
        for each in connections:
            each.settimeout(20)
            assert rest_of(each) == b""
            each.close()
        assert served.complete().status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 200_000,
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ],
    ids=["200 kB of headers", "no HTTP", "no host", "TLS"],
)
def test_what_is_no_http_is_refused_in_the_same_form(served: Live, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connected:
        with suppress(ConnectionError):  # the server may answer before it has read everything
            connected.sendall(sent)
        answer = rest_of(connected)
    assert answer.startswith(b"HTTP/1.1 400 ") or (not answer and len(sent) > 10**5)
    assert not answer or b'{"error":{"message":"the request is not valid HTTP, or its headers are over 16384 bytes' in answer
    assert served.complete().status_code == 200


@pytest.mark.usefixtures("eager_rounds")
def test_a_draft_that_fails_in_mid_load_costs_no_answer_and_health_says_so(
    engine: MakeEngine, alone: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(mode="ssd")
    model: Any = one.core.loop.drafter.model  # type: ignore[union-attr]
    forward, calls = model.forward, [0]

    def fail_later(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > 60:
            raise RuntimeError("out of luck")
        return forward(*arguments)

    monkeypatch.setattr(model, "forward", fail_later)
    with live(one) as served, ThreadPoolExecutor(8) as pool:
        assert served.http.get("/health").json() == {"status": "ok"}
        with pytest.warns(RuntimeWarning, match="the draft failed"):
            answers = list(pool.map(lambda prompt: served.complete(prompt, max_tokens=40, ignore_eos=True), PROMPTS))
        assert [answer.json()["choices"][0]["text"] for answer in answers] == texts_alone(alone, 40)
        health = served.http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "degraded"})
        assert served.figures()["ssd:degraded"] == 1


@pytest.mark.usefixtures("eager_rounds")
def test_a_target_that_gives_no_numbers_is_an_error_of_that_request(
    engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(mode="ar", draft=None)
    logits, broken = one.target_model.logits, [True]

    def spoilt(*given: Any, **named: Any) -> Any:
        result = logits(*given, **named)
        return result.fill_(float("nan")) if broken[0] else result

    monkeypatch.setattr(one.target_model, "logits", spoilt)
    with live(one) as served:
        for stream in (False, True):
            answer = served.complete(stream=stream)
            assert answer.status_code == (200 if stream else 500)
            assert '"code":"not_finite"' in answer.text
            assert "the target's logits for output token 1 have NaN" in answer.text
        broken[0] = False
        assert served.complete().status_code == 200
        assert served.figures()['ssd:requests_ended_total{finished_reason="error"}'] == 2


def test_a_failed_engine_says_so(engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()

    def fail() -> Any:
        raise RuntimeError("out of luck")

    with live(one) as served:
        monkeypatch.setattr(one.core, "step", fail)
        for _ in range(2):
            answer = served.complete()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
        health = served.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})


class Process:
    """`ssd serve` as a process of its own, each verification of which takes at least 10 ms."""

    TOKENS = 300  # of an answer: decoding it takes longer than sending all requests and a signal

    def __init__(self, target: Path, *flags: str) -> None:
        command = [
            sys.executable,
            "-P",
            "-c",
            "import sys; from ssd.cli.main import main; sys.exit(main())",
            "serve",
            str(target),
        ]
        command += ["--draft", str(target.parent / "tiny-draft"), "--mode", "sd", "--dtype", "float32", "--threads", "1"]
        command += ["--max-batch", "4", "--port", "0", "--pace", "10,0", *flags]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        address = re.fullmatch(r"ssd: serving \S+ at (http://127\.0\.0\.1:\d+); Ctrl-C ends it\.\n", first)
        assert address is not None, first + self.process.communicate(timeout=20)[1]
        self.url = address[1]

    def complete(self, prompt: str, stream: bool = False) -> str:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": self.TOKENS, "ignore_eos": True, "stream": stream}
        body["temperature"] = 0
        with httpx.Client(base_url=self.url, timeout=60) as client:
            answer = client.post("/v1/completions", json=body).raise_for_status()
        if not stream:
            return str(answer.json()["choices"][0]["text"])
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        return "".join(httpx.Response(200, text=event).json()["choices"][0]["text"] for event in events[:-1])

    def waits_and_runs(self) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("ssd:num_requests_"))

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_under_load_ends_the_server_after_the_accepted_requests(
    target: Path, alone: Engine, number: signal.Signals
) -> None:
    server = Process(target)
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(server.complete, prompt, index % 3 == 0) for index, prompt in enumerate(PROMPTS)]
        eventually(lambda: server.waits_and_runs() == 12)
        server.process.send_signal(number)
        assert [answer.result() for answer in answers] == texts_alone(alone, server.TOKENS)
    status, said = server.end()
    assert status == 0
    assert said.endswith("ssd: the server has ended.\n")
    assert "Traceback" not in said
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_a_drain_that_takes_too_long_ends_what_is_left(target: Path) -> None:
    server = Process(target, "--drain-seconds", "0")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.complete, prompt) for prompt in PROMPTS[:4]]
        eventually(lambda: server.waits_and_runs() == 4)
        server.process.send_signal(signal.SIGTERM)
        for answer in answers:
            with pytest.raises(httpx.HTTPError):
                answer.result()
    status, said = server.end()
    assert status == 0
    assert "Traceback" not in said
