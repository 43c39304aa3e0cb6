"""`ssd distill` from the command line, on a tiny target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.cases import Refusal, Run

QUICK = [
    "--layers",
    1,
    "--vocab",
    100,
    "--tokens",
    500,
    "--answer-tokens",
    12,
    "--epochs",
    1,
    "--batch-tokens",
    1024,
    "--threads",
    1,
]


def test_a_draft_is_made_and_decodes(run: Run, target: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "the hen"}\n')
    (tmp_path / "benchmark.jsonl").write_text('{"question": "no such words"}\n')
    out = tmp_path / "draft"
    made = run(
        "distill", target, "--out", out, *QUICK, "--from-layers", "2", "--prompts", tmp_path / "own.jsonl", "--field", "text",
        "--exclude", f"{tmp_path / 'benchmark.jsonl'}:question",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert "Training: 100 %" in made.err and "tokens/s" in made.err
    assert "agreement" in made.out and "all" in made.out and f"--draft {out}" in made.out.replace("\n", " ")
    assert json.loads((out / "report.json").read_text())["made_from"]["layers"] == [2]

    plain = run("decode", "the hen", "--target", target, "--mode", "ar", "--max-new-tokens", 12, "--ignore-eos")
    drafted = run(
        "decode", "the hen", "--target", target, "--draft", out, "--mode", "sd", "--max-new-tokens", 12, "--ignore-eos"
    )
    assert drafted.status == 0 and drafted.out == plain.out

    more = run("distill", target, "--out", out, *QUICK, "--from-layers", "2", "--epochs", 2, "--resume", "--json")
    assert more.status == 0, more.err
    assert set(json.loads(more.out)["all"]) == {"agreement", "tokens_per_round"}


@pytest.mark.parametrize(
    "arguments,reason",
    [
        (["--prompts", "empty.jsonl"], "empty.jsonl is empty; give a file with one JSON object a line."),
        (["--exclude", "empty.jsonl"], "empty.jsonl is empty; give a file with one JSON object a line."),
        (["--from-layers", "a,b"], "--from-layers is 'a,b'; give layers of the target with commas between them: 0,1,28,29."),
        (["--weights", "int4"], "weights is 'int4'; it can be 'int8' or 'bfloat16'."),
        (["--resume"], "out holds no run to continue; leave --resume out."),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_in_one_sentence(
    refusal: Refusal, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    assert refusal("distill", target, "--out", "out", *arguments) == reason


def test_a_target_that_is_not_there_is_named(refusal: Refusal, tmp_path: Path) -> None:
    assert "there is no model 'nowhere'" in refusal("distill", "nowhere", "--out", tmp_path / "out")
