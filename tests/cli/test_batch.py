"""`ssd batch`: every line once, in order, whatever interrupts it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.cases import Refusal, Result, Run
from cli.test_serve import run_without
from ssd import Engine, SamplingParams

pytest.importorskip("fastapi")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MAIN = "import sys; from ssd.cli.main import main; sys.exit(main(sys.argv[1:]))"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def request(name: str, content: str, **body: Any) -> dict[str, Any]:
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": chat | body}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def said(answer: dict[str, Any]) -> str:
    choice = answer["response"]["body"]["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.fixture
def batch(run: Run, target: Path, draft: Path, tmp_path: Path) -> Any:
    def call(*arguments: object) -> Result:
        models = ("--draft", draft, "--dtype", "float32", "--threads", 1)
        return run("batch", tmp_path / "in.jsonl", target, *models, "--out", tmp_path / "out.jsonl", *arguments)

    return call


def test_each_line_has_its_answer_or_its_error_in_its_place(batch: Any, target: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl",
        request("a", "one"),
        "",
        {"prompt": "two"},
        "not JSON",
        request("b", "three", temperature=-1),
        request("c", "four", stream=True),
        request("d", "five", model="other"),
        {"custom_id": "e", "url": "/v1/embeddings", "body": {}},
        {"custom_id": 7, "url": CHAT, "body": {}},
        {"custom_id": "f", "url": TEXT, "body": {"prompt": "six", "max_tokens": 5, "temperature": 0}},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "seven"}]},
        request("g", "eight", n=2),
    )
    done = batch("-n", 9)
    assert (done.status, done.out) == (0, ""), done.err
    answers = read(tmp_path / "out.jsonl")
    assert [answer["custom_id"] for answer in answers] == ["a", "2", None, "b", "c", "d", "e", None, "f", "10", "g"]
    statuses = [answer["response"] and answer["response"]["status_code"] for answer in answers]
    assert statuses == [200, 200, None, 400, 400, 404, None, None, 200, 200, 200]
    for answer in answers:
        assert (answer["response"] is None) == (answer["error"] is not None)
        assert answer["id"].startswith("batch_req_")
    assert "temperature" in answers[3]["response"]["body"]["error"]["message"]
    assert "a batch has no streams" in answers[4]["response"]["body"]["error"]["message"]
    assert "the url /v1/chat/completions or" in answers[6]["error"]["message"]
    assert len(answers[10]["response"]["body"]["choices"]) == 2
    with Engine(str(target), None, "ar", dtype="float32") as engine:
        assert said(answers[0]) == engine.decode("one", SamplingParams(max_new_tokens=12)).text
        assert said(answers[1]) == engine.decode("two", SamplingParams(max_new_tokens=9)).text
        assert said(answers[8]) == engine.decode("six", SamplingParams(max_new_tokens=5), raw=True).text


def test_raw_prompts_of_another_field(batch: Any, target: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", {"ask": "one", "custom_id": "first"})
    assert batch("--raw", "--field", "ask", "-n", 6, "--seed", 3, "-t", 1).status == 0
    (answer,) = read(tmp_path / "out.jsonl")
    with Engine(str(target), None, "ar", dtype="float32") as engine:
        expected = engine.decode("one", SamplingParams(max_new_tokens=6, seed=3, temperature=1), raw=True).text
    assert (answer["custom_id"], answer["response"]["body"]["object"]) == ("first", "text_completion")
    assert len(said(answer)) > 0 and len(expected) > 0  # sampled with a draft: the same law, other draws


def test_a_batch_that_is_killed_goes_on(target: Path, draft: Path, tmp_path: Path) -> None:
    """Three times, with -9; then a torn last line."""
    count = 240
    prompts = [f"prompt {index % 50} of {'x' * (index % 37)}" for index in range(count)]
    file = write(tmp_path / "in.jsonl", *[request(f"line-{index}", prompt) for index, prompt in enumerate(prompts)])
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-P", "-c", MAIN, "batch", file, target, "--draft", draft, "--dtype", "float32", "--out", out]
    chance = random.Random(0)
    for _ in range(3):
        before = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.stat().st_size <= before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.wait()
    with out.open("ab") as torn:
        torn.write(b'{"id": "batch_req_1", "custom_id": "li')
    last = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    assert last.stderr.endswith(f"{out} has all {count} answers.\n")
    answers = read(out)
    assert [answer["custom_id"] for answer in answers] == [f"line-{index}" for index in range(count)]
    with Engine(str(target), None, "ar", dtype="float32") as engine:
        expected = engine.decode(prompts, SamplingParams(max_new_tokens=12))
    assert [said(answer) for answer in answers] == [completion.text for completion in expected]


def test_ctrl_c_keeps_the_answers(batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.jsonl", *[request(str(index), "one") for index in range(40)])
    from ssd.cli.batch import _Writer

    sync = _Writer._sync

    def interrupted(self: _Writer) -> None:
        sync(self)
        if self.written == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("ssd.cli.batch.SYNC_SECONDS", -1.0)
    monkeypatch.setattr(_Writer, "_sync", interrupted)
    done = batch()
    assert done.status == 130
    assert done.err.startswith("ssd: interrupted after 5 of 40 answers, which are in ")
    monkeypatch.undo()
    assert batch().status == 0
    assert [answer["custom_id"] for answer in read(tmp_path / "out.jsonl")] == [str(index) for index in range(40)]
    assert batch().err.endswith("has all 40 answers.\n")


def test_an_engine_that_fails_ends_the_batch_and_writes_no_error_for_its_lines(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd.serving.core import Core

    write(tmp_path / "in.jsonl", *[request(str(index), "one") for index in range(40)])
    step, steps = Core.step, 0

    def fails(self: Core) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise ZeroDivisionError
        step(self)

    monkeypatch.setattr(Core, "step", fails)
    done = batch()
    assert done.status == 1
    assert "the engine has failed (ZeroDivisionError)" in done.err
    answers = read(tmp_path / "out.jsonl")
    assert 0 < len(answers) < 40
    assert all(answer["response"]["status_code"] == 200 for answer in answers)


def test_what_cannot_be_is_refused(refusal: Refusal, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert "cannot be read (No such file" in refusal("batch", tmp_path / "none.jsonl", target, "--out", out)
    file = write(tmp_path / "in.jsonl", request("a", "one"))
    write(out, {"custom_id": "b"})
    assert "line 1 of" in (words := refusal("batch", file, target, "--out", out)) and "answers another request ('b')" in words
    write(out, "poetry")
    assert "is no answer of a batch" in refusal("batch", file, target, "--out", out)
    assert out.read_text() == "poetry\n"


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    done = run_without("starlette", "batch", str(tmp_path), "--out", "out.jsonl")
    assert done.returncode == 1
    assert done.stderr == "ssd: `ssd batch` needs starlette, which is not installed; pip install 'ssd-decode[server]'.\n"
