"""`ssd simulate` from the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cli.cases import Refusal, Run
from report.results import document
from simulate.test_rounds import STATS
from ssd.bench.results import FORMAT

TIMES = ("--t-verify", 10, "--t-draft", 1.5, "--rounds", 20_000)


def test_the_table_has_a_row_for_every_setting(run: Run) -> None:
    done = run("simulate", *TIMES, "--lookahead", "2,4", "--budget", "8,16")
    assert done.status == 0, done.err
    for row in ("ar", "sd, K = 2", "sd, K = 4", "ssd, K = 2, B = 8", "ssd, K = 4, B = 16"):
        assert any(line.strip().startswith(row + " ") for line in done.out.splitlines()), row
    assert "assumed" in done.out


def test_a_result_of_bench_gives_the_outcomes(run: Run, tmp_path: Path) -> None:
    result, made = tmp_path / "bench.json", document()
    for turn in made["turns"]:
        for sequence in turn.get("sequences", ()):
            sequence["stats"] = asdict(replace(STATS, mode=sequence["stats"]["mode"]))
    result.write_text(json.dumps(made), encoding="utf-8")
    done = run("simulate", result, *TIMES, "--lookahead", 2, "--budget", 8, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["what"] == "simulated" and found["outcomes"]["acceptance"] == pytest.approx([0.5, 30 / 45])
    assert [row["setting"]["mode"] for row in found["rows"]] == ["ar", "sd", "ssd"]
    assert "result bench.json" in run("simulate", result, *TIMES, "--lookahead", 2).out


WRONG = [
    (("--t-verify", 0, "--t-draft", 1), "t_verify"),
    (("--t-verify", 1, "--t-draft", "nan"), "t_draft"),
    ((*TIMES, "--t-exchange", -1), "t_exchange"),
    ((*TIMES, "--lookahead", "2,x"), "lookahead"),
    ((*TIMES, "--budget", "0"), "budget"),
    ((*TIMES, "--batch", 0), "batch"),
    ((*TIMES, "--fallback", "ngram"), "fallback"),
    ((*TIMES, "--acceptance", 1.5), "acceptance"),
    ((*TIMES, "--decay", -1), "decay"),
]


@pytest.mark.parametrize("arguments, name", WRONG, ids=[name for _, name in WRONG])
def test_a_wrong_value_is_refused_in_one_sentence(run: Run, arguments: tuple[object, ...], name: str) -> None:
    done = run("simulate", *arguments)
    assert done.status == 2 and done.err.startswith("ssd: ") and name in done.err and done.err.count("\n") == 1


def test_a_wrong_file_is_refused_in_one_sentence(run: Run, refusal: Refusal, tmp_path: Path) -> None:
    """test_report.py tries more wrong files."""
    assert "cannot be read" in refusal("simulate", tmp_path / "none.json", *TIMES)
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"what": "simulated", "format": FORMAT}), encoding="utf-8")
    assert "is a result of kind 'simulated'" in refusal("simulate", result, *TIMES)
    result.write_text(json.dumps(document(turns=[])), encoding="utf-8")
    assert "no decode in mode 'ssd'" in refusal("simulate", result, *TIMES)
    assert "leave one of them out" in refusal("simulate", result, *TIMES, "--acceptance", 0.5, status=2)
