"""`ssd bench` from the command line to the file, on a tiny pair."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.cases import Refusal, Result, Run
from ssd.bench.run import Pairs
from ssd.bench.sets import BUILT_IN

Bench = Callable[..., Result]
TIMES = {"seconds", "read_bandwidth_bytes_per_s", "peak_memory_bytes", "date", "figures"}


@pytest.fixture
def bench(run: Run, target: Path, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("ssd.bench.machine.read_bandwidth", lambda threads: 1e10)
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text("".join(json.dumps({"ask": text}) + "\n" for text in ("one", "two", "three")), encoding="utf-8")
    given = ["--draft", draft, "--dtype", "float32", "--fallback", "neural", "--threads", 1, "--field", "ask"]

    def call(*arguments: object, out: str = "out.json") -> Result:
        sets = ["--prompts", prompts, "--prompts", "code", "--limit", 2]
        return run("bench", target, *given, *sets, "-n", 12, "--runs", 2, "--out", tmp_path / out, *arguments)

    return call


def without_times(document: Any) -> Any:
    """The document without what is measured in seconds or bytes."""
    if isinstance(document, dict):
        kept = {name: value for name, value in document.items() if name not in TIMES}
        return {n: without_times(v) for n, v in kept.items() if not n.endswith(("_ms", "_s", "_per_s"))}
    return [without_times(each) for each in document] if isinstance(document, list) else document


def test_the_result_has_every_variant_on_every_set(bench: Bench, tmp_path: Path) -> None:
    done = bench("--sweep", "lookahead=2,3")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "out.json").read_text())
    names = ["ar", "sd K=2", "sd K=3", "ssd K=2", "ssd K=3"]
    assert list(found["variants"]) == names
    assert [(turn["run"], turn["set"], turn["variant"]) for turn in found["turns"]] == [
        (run, each, name) for run in (0, 1) for each in ("mine", "code") for name in names
    ]
    assert found["sets"]["mine"]["prompts"] == found["sets"]["code"]["prompts"] == 2
    assert [(each["set"], each["variant"]) for each in found["figures"]] == [
        (each, name) for each in ("mine", "code", "all sets") for name in names
    ]
    for each in found["figures"]:
        assert each["identical"] is True
        assert each["decode_tokens_per_s"]["median"] > 0
        assert (each["hit_rate"] is not None) == each["variant"].startswith("ssd")
        low, high = each["over_first"]["interval"]
        assert low <= each["over_first"]["mean"] <= high
        assert each["verify_floor_ms"] == pytest.approx(found["turns"][0]["weight_bytes"] / 1e10 * 1e3)
    assert found["machine"]["date"] and found["machine"]["instruction_set"]
    assert "all sets" in done.out and "ssd K=3" in done.out
    assert not (tmp_path / "out.json.partial").exists()


def test_an_interrupted_benchmark_goes_on_and_ends_in_the_same_result(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench("--temperature", 1, out="whole.json").status == 0
    measure, turns = Pairs.measure, 0

    def interrupted(self: Pairs, *arguments: Any, **shown: bool) -> Any:
        nonlocal turns
        turns += 1
        if turns in (3, 4, 8):
            raise KeyboardInterrupt
        return measure(self, *arguments, **shown)

    monkeypatch.setattr(Pairs, "measure", interrupted)
    for kept in (2, 2, 5):
        done = bench("--temperature", 1)
        assert done.status == 130
        assert (
            done.err
            == f"ssd: interrupted after {kept} turns, which are kept in {tmp_path}/out.json.partial; the same command goes on.\n"
        )
    assert bench("--temperature", 1).status == 0
    assert turns == 12 + 3
    whole, parts = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "out.json"))
    assert without_times(parts) == without_times(whole)
    assert [each["tokens_per_round"] for each in parts["figures"]] == [each["tokens_per_round"] for each in whole["figures"]]


def test_a_full_disk_loses_no_turn(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 20)  # the last line was cut
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = bench()
    assert (done.status, done.err) == (1, "ssd: [Errno 28] No space left on device.\n")
    kept = (tmp_path / "out.json.partial").read_bytes()
    assert kept.count(b"\n") == 5  # the head, the machine's speed, three turns
    assert bench().status == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [json.loads(line) for line in kept.splitlines()[2:5]] == found["turns"][:3]
    assert len(found["turns"]) == 12


def test_a_peer_takes_its_turns(bench: Bench, tmp_path: Path) -> None:
    code = "import json, sys; n = len(open(sys.argv[1]).readlines()); print('noise'); "
    code += "print(json.dumps({'decode_tokens_per_s_median': n, 'tokens': sys.argv[2]}))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{prompts}} {{tokens}}"
    assert bench("--mode", "ar", "--peer", f"other={command}").status == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [turn.get("peer", turn.get("variant")) for turn in found["turns"]] == ["as given", "other"] * 4
    assert found["peer_figures"] == [{"set": each, "peer": "other", "decode_tokens_per_s": [2, 2]} for each in ("mine", "code")]
    assert found["turns"][1]["answer"]["tokens"] == "12"


def test_json_is_one_document(bench: Bench, tmp_path: Path) -> None:
    done = bench("--mode", "sd", "--json")
    assert json.loads(done.out)["turns"] == json.loads((tmp_path / "out.json").read_text())["turns"]


def test_what_cannot_be_measured_is_refused_in_one_sentence(
    bench: Bench,
    refusal: Refusal,
    target: Path,
    draft: Path,
    tmp_path: Path,
) -> None:
    assert refusal("bench", "--prompts", "poems").startswith("there is no set of prompts 'poems'; choose code, maths,")
    assert "cannot be read" in refusal("bench", "--prompts", tmp_path / "none.jsonl")
    assert "has no field 'prompt'" in refusal("bench", "--prompts", tmp_path / "mine.jsonl")
    assert refusal("bench", "--runs", 0, status=2).startswith("runs is 0")
    assert refusal("bench", "--peer", "other", status=2).startswith("the peer is 'other'")
    assert refusal("bench", "--prompts", "code", "--prompts", "code", status=2).startswith(
        "two sets of prompts have the same name"
    )
    assert "give an option and its values" in refusal("bench", "--sweep", "speed=1")
    bad = bench("--mode", "ar", "--peer", f"other={sys.executable} -c 'raise SystemExit(\"no model\")'")
    assert bad.err.startswith(
        "ssd: the peer 'other' ended with status 1, and its last line has no decode_tokens_per_s_median; it said: no"
    )
    other = bench("--mode", "sd")
    assert (other.status, other.err.count("\n")) == (1, 1)
    assert "out.json.partial is of a benchmark that differs in variants, peers;" in other.err
    (tmp_path / "out.json.partial").write_text("poetry\n")
    assert "is not the file of a benchmark" in bench("--mode", "sd").err
    (tmp_path / "out.json.partial").unlink()
    (tmp_path / "out.json").write_text("a result")
    assert "out.json exists already" in bench("--mode", "sd").err
    assert (tmp_path / "out.json").read_text() == "a result"


def test_a_draft_that_fails_is_never_measured_as_speculation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssd.decoding.drafters.model import ModelDrafter

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("the draft is lost")

    monkeypatch.setenv("SSD_EAGER", "1")
    monkeypatch.setattr(ModelDrafter, "draft", fail)
    done = bench("--mode", "sd")
    assert done.status == 1
    assert "measured nothing, because the draft failed" in done.err


def test_each_built_in_set_has_prompts_of_its_own() -> None:
    prompts = [prompt for each in BUILT_IN.values() for prompt in each.prompts]
    assert len(prompts) == len(set(map(str, prompts))) == 40
    assert len({each.sha256 for each in BUILT_IN.values()}) == len(BUILT_IN) == 5


def test_the_commit_is_of_the_sources_and_of_no_repository_around_them(tmp_path: Path) -> None:
    """An installed package may lie in a folder of somebody else's repository."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    code = "import ssd.bench.machine as m; m.__file__ = __import__('sys').argv[1]; print(m._commit())"
    inside = tmp_path / "venv" / "ssd" / "bench" / "machine.py"
    environment = {name: value for name, value in os.environ.items() if name != "SSD_COMMIT"}
    done = subprocess.run([sys.executable, "-c", code, inside], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None\n"
