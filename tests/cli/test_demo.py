"""`ssd demo`: three modes of one prompt, their table, and words that follow from its figures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from cli.cases import Result, Run
from ssd.cli import demo as module
from ssd.cli import options as o
from ssd.cli.comparison import DRAFT_SPEED, Row, reachable_pace, verdict
from ssd.decoding.stats import Stats
from ssd.options import EngineOptions


@pytest.fixture
def demo(run: Run, target: Path, draft: Path) -> Run:
    def call(*arguments: object) -> Result:
        return run(
            "demo", "the rain", "-n", 12, "--target", target, "--draft", draft, "--dtype", "float32", "--threads", 1, *arguments
        )

    return call


def rows_of(table: str) -> list[tuple[str, str]]:
    """The first and the last word of each row."""
    lines = [line.split() for line in table.splitlines()]
    return [(words[0], words[-1]) for words in lines if words and words[-1] in ("yes", "no")]


def test_with_two_cores_there_is_a_table_with_a_core_for_each_model(
    run: Run, target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    options = ("--target", target, "--draft", draft, "--dtype", "float32", "-n", 12)
    result = run("demo", "the rain", *options)
    assert (result.status, result.err) == (0, "")
    plain, each = result.out.split("The same, with a core for each model")
    assert rows_of(plain) == [("ar", "yes"), ("sd", "yes"), ("ssd", "yes")]
    assert rows_of(each) == [("ar", "yes"), ("sd", "yes"), ("ssd", "yes"), ("sd", "yes")]
    words = " ".join(each.split())
    assert re.search(r"ssd is ([\d.]+ times )?as fast as sd\.", words)
    assert re.search(r"ssd is ([\d.]+ times )?as fast as sd on both cores\.", words)
    monkeypatch.setattr(module, "cores", lambda: 1)
    one = run("demo", "the rain", *options)
    assert "This needs two cores, and ssd may use one here." in one.out
    assert one.out.count("identical") == 1


def test_the_models_of_the_second_table_have_a_core_each(
    run: Run, target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[Any, ...]] = []

    def record(description: str, options: EngineOptions) -> Any:
        loaded.append((options.mode, options.threads, options.draft_threads))
        return o.loaded_engine(description, options)

    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(module, "o", SimpleNamespace(**{**vars(o), "loaded_engine": record}))
    assert run("demo", "the rain", "--target", target, "--draft", draft, "--dtype", "float32", "-n", 4).status == 0
    assert loaded[:3] == [("ar", None, None), ("sd", None, None), ("ssd", None, None)]
    assert loaded[3:] == [("ar", 1, 1), ("sd", 1, 1), ("ssd", 1, 1), ("sd", 2, None)]


def test_the_paced_modes_give_the_same_tokens(demo: Run) -> None:
    result = demo("--pace", "4,0.5")
    assert (result.status, result.err) == (0, "")
    plain, paced = result.out.split("The same, paced")
    for part in (plain, paced):
        assert "identical" in part
        assert rows_of(part) == [("ar", "yes"), ("sd", "yes"), ("ssd", "yes")]
    words = " ".join(paced.split())
    assert "at least 4 ms" in words
    assert "not the speed of this machine" in words


def test_json_is_one_document(demo: Run) -> None:
    result = demo("--json", "--paced")
    assert result.status == 0
    found = json.loads(result.out)
    assert found["identical"] is True
    assert len(found["token_ids"]) <= 12
    plain, paced = found["tables"]
    assert plain["pace_ms"] is None
    verify, draft = paced["pace_ms"]
    assert verify >= DRAFT_SPEED * draft > 0
    for table in (plain, paced):
        assert [table["modes"][mode]["stats"]["mode"] for mode in ("ar", "sd", "ssd")] == ["ar", "sd", "ssd"]
        assert table["modes"]["ar"]["speed_up"] == 1
        assert table["modes"]["ssd"]["hit_rate"] is not None
        assert table["verdict"]


def test_where_the_threads_are_given_there_is_one_table(demo: Run) -> None:
    assert len(json.loads(demo("--json").out)["tables"]) == 1


def test_the_timeline_has_every_run(demo: Run, tmp_path: Path) -> None:
    demo("--pace", "2,0.1", "--trace", tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    runs = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    assert list(runs) == ["ar", "sd", "ssd", "ar, paced", "sd, paced", "ssd, paced"]
    for pid in runs.values():
        assert any(e["name"] == "verify" for e in events if e["pid"] == pid)


def test_other_tokens_are_shown_and_fail(demo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run_mode = module._Runner._run

    def one_token_off(self: Any, mode: str, *rest: Any) -> Any:
        completion = run_mode(self, mode, *rest)
        return replace(completion, token_ids=[*completion.token_ids[:-1], -1]) if mode == "sd" else completion

    monkeypatch.setattr(module._Runner, "_run", one_token_off)
    result = demo()
    assert result.status == 1
    assert "different tokens" in result.err
    assert [line.split()[-1] for line in result.out.splitlines() if line.split()[:1] == ["sd"]][-1] == "no"


def test_a_draft_that_failed_is_never_shown_as_speculation(demo: Run, broken_draft: Path) -> None:
    result = demo("--draft", broken_draft)
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("ssd: the draft failed in mode sd")


def test_a_target_that_is_not_finite_is_shown_as_an_error(run: Run, tmp_path: Path) -> None:
    vocabulary = tiny.vocabulary_of_bytes()
    tiny.write_model(tmp_path, tokenizer=vocabulary, vocab_size=len(vocabulary))
    tiny.spoil_token(tmp_path, vocabulary.index("z"))
    result = run("demo", "a zoo", "--target", tmp_path, "--draft", "self:1", "--threads", 1, "--dtype", "float32")
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("ssd: the target's logits for output token 1 ")


# What the figures say ---------------------------------------------------------------------------------------------------------


def stats(mode: str, **changes: Any) -> Stats:
    speculates, caches = mode != "ar", mode == "ssd"
    return replace(
        Stats(
            mode=mode,
            rounds=20,
            mean_acceptance_length=2.0 if speculates else 1.0,
            accepted_per_round=1.0 if speculates else 0.0,
            acceptance_rate=0.25 if speculates else None,
            hit_rate=0.5 if caches else None,
            hits_per_k={},
            rank_counts={},
            rank_counts_whole={},
            proposed_counts={},
            accepted_at=[],
            t_verify_ms=30.0,
            t_draft_ms={"ar": None, "sd": 80.0, "ssd": 150.0}[mode],
            t_fallback_ms=80.0 if caches else None,
            hidden_draft_ms=30.0 if caches else None,
            branches_unused=0,
            cached_tokens=0,
            decode_tokens_per_s=30.0,
            time_to_first_token_s=0.1,
        ),
        **changes,
    )


def rows(sd: float | None, ssd: float | None, **changes: Any) -> list[Row]:
    speeds = {"ar": 1.0, "sd": sd, "ssd": ssd}
    return [Row(mode, stats(mode, **changes), speed, identical=True) for mode, speed in speeds.items()]


def test_a_loss_is_called_a_loss_with_its_reason() -> None:
    words = verdict(rows(0.5, 0.4), lookahead=4, pace=None)
    assert "A round of sd takes as long as 4.0 tokens of ar and yields 2.0: 0.50 times as fast as ar." in words
    assert "A round of ssd takes as long as 5.0 tokens of ar and yields 2.0: 0.40 times as fast as ar." in words
    assert "One pass of this draft takes 67% of the time of one of its target" in words
    assert "25% of what it proposes is accepted: speculation does not pay here." in words


def test_a_gain_is_called_a_gain() -> None:
    words = verdict(rows(1.25, 2.0), lookahead=4, pace=None)
    assert "1.25 times as fast as ar" in words
    assert "2.00 times as fast as ar" in words
    assert "does not pay" not in words


def test_a_difference_too_small_to_mean_anything_is_none() -> None:
    assert "as fast as ar." in verdict(rows(1.02, 0.98), lookahead=4, pace=None)


def test_a_text_too_short_to_time_is_not_judged() -> None:
    assert verdict(rows(None, None), lookahead=4, pace=None) == "The text is too short to compare speeds."


def test_a_pace_that_was_not_kept_is_said() -> None:
    kept = verdict(rows(1.1, 1.2), lookahead=4, pace=(30.0, 30.0))
    assert "could not keep" not in kept
    late = verdict(rows(1.1, 1.2), lookahead=4, pace=(20.0, 10.0))
    assert "a verification took 30 ms where the pace asks for 20" in late
    assert "a pass of the draft took 30 ms where the pace asks for 10" in late


def test_the_pace_leaves_room_over_what_was_measured() -> None:
    verify, draft = reachable_pace([stats(mode) for mode in ("ar", "sd", "ssd")], lookahead=4)
    assert draft == 38  # 150 ms for 5 passes, and a quarter more
    assert verify == DRAFT_SPEED * draft
    assert reachable_pace([stats("ar", t_verify_ms=1000.0), stats("sd")], lookahead=4)[0] == 1250
