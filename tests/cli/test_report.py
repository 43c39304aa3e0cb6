"""`ssd report`: files in, one page out. The page opens in Chromium in test_report_page.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.cases import Refusal, Run
from report.results import document
from ssd.bench.results import FORMAT

pytest.importorskip("altair")
pytest.importorskip("vl_convert")


def lacking(name: str, *path: str | int) -> dict[str, Any]:
    found: Any = document()
    inner = found
    for step in path:
        inner = inner[step]
    del inner[name]
    return found  # type: ignore[no-any-return]


def test_a_benchmark_becomes_a_page_that_loads_nothing(run: Run, target: Path, draft: Path, tmp_path: Path) -> None:
    result, out = tmp_path / "bench.json", tmp_path / "page.html"
    given = ("--draft", draft, "--dtype", "float32", "--threads", 1, "--prompts", "code", "--limit", 2, "-n", 16, "--runs", 1)
    assert run("bench", target, *given, "--out", result).status == 0
    done = run("report", result, "--out", out)
    assert (done.status, done.err) == (0, f"ssd: the page is in {out}.\n")
    page = out.read_text(encoding="utf-8")
    assert len(page) < 5e6
    for absent in ("src=", "@import", 'href="http', "url("):
        assert absent not in page.partition('<script type="module">')[0], absent
    for section in ("Speed", "Where a round", "A few rounds", "Acceptance by position", "Hit rate", "Machine, prompts"):
        assert f">{section}" in page, section
    assert str(tmp_path) not in page


def test_a_result_cannot_end_the_page_s_script(run: Run, tmp_path: Path) -> None:
    hostile = document()
    name = "</script><script>alert(1)</script>"
    for part in (*hostile["figures"], *hostile["turns"]):
        if part.get("variant") == "ssd":
            part["variant"] = name
    hostile["variants"][name] = hostile["variants"].pop("ssd")
    (tmp_path / "bench.json").write_text(json.dumps(hostile), encoding="utf-8")
    assert run("report", tmp_path / "bench.json", "--out", tmp_path / "page.html").status == 0
    assert "<script>alert" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_simulation_is_marked_as_one(run: Run, tmp_path: Path) -> None:
    simulated = run("simulate", "--t-verify", 10, "--t-draft", 1, "--rounds", 2000, "--json").out
    (tmp_path / "ran.json").write_text(simulated, encoding="utf-8")
    assert run("report", tmp_path / "ran.json", "--out", tmp_path / "page.html").status == 0
    assert "ran is simulated: nothing was decoded for it." in (tmp_path / "page.html").read_text(encoding="utf-8")


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: None, "cannot be read: No such file or directory."),
    (lambda: "no", "is not JSON"),
    (lambda: [1], "is not a result"),
    (lambda: {"what": "decode"}, "is a result of kind 'decode'"),
    (lambda: document(format=FORMAT + 1), "update ssd"),
    (lambda: document(format=None), "update ssd"),
    (lambda: document(format=0), "was written by an older version"),
    (lambda: lacking("figures"), "has no field 'figures'"),
    (lambda: lacking("tokens_per_round", "figures", 2), "has no field 'tokens_per_round'"),
    (lambda: lacking("pooled", "figures", 0, "decode_tokens_per_s"), "has no field 'pooled'"),
    (lambda: lacking("max_batch", "variants", "ssd"), "has no field 'max_batch'"),
    (lambda: lacking("sha256", "sets", "code"), "has no field 'sha256'"),
    (lambda: lacking("hits_per_k", "turns", 0, "sequences", 0, "stats"), "has no field 'hits_per_k'"),
    (lambda: lacking("rounds", "turns", 0, "sequences", 0, "stats"), "'rounds'"),
    (lambda: document(turns=3), "has a field of a wrong kind"),
    (lambda: {"what": "simulated", "format": FORMAT, "rows": [{}]}, "has no field 'setting'"),
    (lambda: {"what": "quality"}, "has no field 'quality'"),
]


@pytest.mark.parametrize("content, said", WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_file_is_refused_in_one_sentence(
    refusal: Refusal, tmp_path: Path, content: Callable[[], Any], said: str
) -> None:
    path, value = tmp_path / "x.json", content()
    if value is not None:
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    sentence = refusal("report", path, "--out", tmp_path / "page.html")
    assert sentence.startswith(f"{path} ") and said in sentence
    assert not (tmp_path / "page.html").exists()


def test_results_that_cannot_be_compared_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    other = document()
    other["machine"]["cores"] = 64
    for name, each in (("a", document()), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(each), encoding="utf-8")
    sentence = refusal("report", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "page.html")
    assert (
        sentence
        == "a and b come from machines that differ in cores (2 and 64), so they cannot be compared; make a page of each."
    )


def test_a_page_that_cannot_be_written_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document()), encoding="utf-8")
    assert "cannot be written" in refusal("report", tmp_path / "a.json", "--out", tmp_path / "none" / "page.html")
