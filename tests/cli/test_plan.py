"""`ssd plan` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.cases import Refusal, Run
from report.results import document
from ssd.plan import calibration

H100 = ("Llama-3.1-8B", "--draft", "Llama-3.2-1B", "--on", "H100")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RUNS", 1)


def test_a_plan_for_this_machine(run: Run, quick: None, target: Path, draft: Path) -> None:
    options = ("--draft", draft, "--dtype", "float32", "--threads", 1, "--lookahead", "2,3", "--budget", 4, "--batch", "1,2")
    done = run("plan", target, *options, "--decay", 0.5)
    assert done.status == 0, done.err
    for text in ("predicted, batch 1", "predicted, batch 2", "ssd, K = 3, B = 4", "fits", "assumed", "Times are measured here"):
        assert text in done.out
    *_, command = done.out.strip().splitlines()
    assert command.startswith(f"  ssd serve {target} --mode ") and "--dtype float32 --threads 1" in command


def test_the_outcomes_of_prompts_and_the_engine_s_memory(
    run: Run, quick: None, target: Path, draft: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"ask": "one"}\n{"ask": "two"}\n', encoding="utf-8")
    options = ("--draft", draft, "--dtype", "float32", "--lookahead", 3, "--budget", 4, "-n", 24)
    done = run("plan", target, *options, "--measure", prompts, "--field", "ask", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["outcomes"]["source"] == "measured on 2 prompts: mine" and len(found["outcomes"]["acceptance"]) == 3
    assert [row["setting"]["mode"] for row in found["rows"]] == ["ar", "sd", "ssd"]
    assert [row["apart_tokens_per_s"] is not None for row in found["rows"]] == [False, False, True]
    engine = found["engine"]
    assert engine["device"] == "cpu" and engine["kv_bytes"] > engine["draft_kv_bytes"]


def test_a_plan_for_described_devices_needs_no_model(run: Run) -> None:
    done = run("plan", *H100, "--batch", "1,64", "--context", 8192, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["sequences_that_fit"]["1"] > found["sequences_that_fit"]["64"] > 0
    assert found["engine"] is None and any("0.8 µs" in sentence for sentence in found["assumptions"])
    assert "--max-batch 1 " in found["command"]  # 64 do not fit
    ssd = [row for row in found["rows"] if row["setting"]["mode"] == "ssd" and row["setting"]["batch"] == 1]
    assert all(row["apart_tokens_per_s"] > row["tokens_per_s"] for row in ssd)
    assert "--device cuda --draft" not in found["command"] and "--device cuda" in found["command"]
    apart = run("plan", *H100, "--draft-on", "H100", "--lookahead", 4, "--budget", 8)
    assert "--device cuda:0 --draft-device cuda:1" in apart.out and "Llama-3.2-1B" in apart.out


def test_a_model_too_large_for_the_device_is_said(run: Run) -> None:
    done = run("plan", "Llama-3.1-70B", "--draft", "Llama-3.2-1B", "--on", "H100", "--lookahead", 4, "--budget", 8)
    assert done.status == 0 and "does not fit" in done.out and "are missing" in done.out
    assert "ssd serve" not in done.out


def test_a_result_of_bench_gives_the_outcomes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(document()), encoding="utf-8")
    done = run("plan", *H100, "--outcomes", tmp_path / "bench.json", "--lookahead", 2, "--budget", 4)
    assert done.status == 0 and "result bench.json" in done.out


WRONG = [
    (("--context", 0), 2, "context"),
    (("--link", -1), 2, "link"),
    (("--batch", "1,x"), 2, "batch"),
    (("--measure", "code"), 2, "--measure decodes on this machine"),
    (("--on", "H101"), 1, "the device is 'H101'"),
    (("--acceptance", 2), 2, "acceptance"),
    (("--draft", "ngram"), 1, "has no draft model"),
    (("--draft", "self:99"), 1, "'self:1' to 'self:32'"),
]


@pytest.mark.parametrize("arguments, status, said", WRONG, ids=[said for *_, said in WRONG])
def test_a_wrong_value_is_refused_in_one_sentence(
    refusal: Refusal, arguments: tuple[object, ...], status: int, said: str
) -> None:
    assert said in refusal("plan", *H100, *arguments, status=status)


def test_plans_that_make_no_sense_are_refused(refusal: Refusal, target: Path) -> None:
    assert "give both" in refusal("plan", target, "--draft-on", "H100", status=2)
    assert "has no draft model" in refusal("plan", target)
    assert "there is no set of prompts" in refusal("plan", target, "--measure", "nothing")
