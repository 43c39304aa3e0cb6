"""The rows behind the page's charts, from a made result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from report.results import MODES, PROMPTS, ROUNDS, document
from ssd.bench.results import BenchResult
from ssd.errors import SsdError
from ssd.report import rows


def variants(*documents: dict[str, Any]) -> list[rows.Variant]:
    given = documents or (document(),)
    return rows.variants_of([BenchResult.of(Path(f"result{i}.json"), each) for i, each in enumerate(given)])


def test_every_set_has_every_variant_then_the_peers() -> None:
    found = rows.speeds(variants())
    assert [(row["set"], row["variant"]) for row in found] == [
        (each, name) for each, peers in (("code", ["other"]), ("chat", []), ("all sets", [])) for name in (*MODES, *peers)
    ]
    assert found[0]["over_first"] is None and found[1]["over_first"] > 2
    assert found[3]["tokens_per_s"] == 51.0 and found[3]["low"] < 50


def test_the_parts_of_a_round_add_up_to_the_mean_round() -> None:
    for row in rows.round_parts(variants()):
        mean = MODES[row["variant"]][1] + 0.5
        assert row["round_ms"] == pytest.approx(mean)
        assert sum(row["parts"].values()) == pytest.approx(mean)
        assert row["alone_ms"] == (9.0 if row["variant"] == "ssd" else None)
    ssd = rows.round_parts(variants())[-1]
    assert ssd["parts"]["draft, not hidden"] == 0 and ssd["parts"]["fallback"] == pytest.approx(0.4 * 2)
    assert ssd["branches_unused"] == 700 / ROUNDS


def test_a_timeline_shows_the_innermost_phases_of_a_few_rounds() -> None:
    found = rows.timeline(variants()[-1])
    assert {row["phase"] for row in found} == {"verify", "branch"}
    assert min(row["start"] for row in found) == 0
    assert sum(row["phase"] == "verify" for row in found) == rows.SHOWN_ROUNDS


def test_the_fit_finds_the_law_that_the_ranks_follow() -> None:
    (curve,) = rows.hit_curves(variants())
    assert len(curve.shares) == rows.SHOWN_GUESSES
    assert curve.shares[:8] == pytest.approx([1 - 0.5 / f for f in range(1, 9)], abs=1e-3)
    exact = document()
    for turn in exact["turns"]:
        for sequence in turn.get("sequences", ()):
            sequence["stats"]["rank_counts"].pop(900, None)
            if ranks := sequence["stats"]["rank_counts"]:
                ranks[2000] = 625
                for rank in range(8, rows.SHOWN_GUESSES):
                    ranks[rank] = 1e4 * (0.5 / rank - 0.5 / (rank + 1))
                ranks[2000] = 1e4 * 0.5 / rows.SHOWN_GUESSES
    (curve,) = rows.hit_curves(variants(exact))
    assert (curve.first_miss, curve.decay) == pytest.approx((0.5, 1.0), rel=0.01)


def test_the_model_s_line_goes_through_the_measured_speed_and_the_break_even() -> None:
    (gain,) = rows.gains(variants())
    assert (gain.label, gain.over, len(gain.points)) == ("ssd", "sd", 2 * PROMPTS)
    measured = 13.5 / 11.5
    assert dict(gain.line)[0.6] == pytest.approx(measured)
    assert gain.break_even == 0.0  # a round that misses takes 12.7 ms, and one of sd 13.5


def test_no_hit_rate_is_enough_where_sd_is_faster() -> None:
    slow = document()
    for turn in slow["turns"]:
        for sequence in turn.get("sequences", ()):
            if turn["variant"] == "sd":
                sequence["stats"]["decode_tokens_per_s"] *= 2
    (gain,) = rows.gains(variants(slow))
    assert gain.break_even is None


def test_an_option_that_was_swept_gets_a_line_for_each_setting_of_the_others() -> None:
    assert rows.ablations(variants()) == {}
    swept = document()
    for name, budget in (("ssd B=4", 4), ("ssd B=6", 6)):
        swept["variants"][name] = swept["variants"]["ssd"] | {"budget": budget}
        swept["figures"] += [each | {"variant": name} for each in swept["figures"] if each["variant"] == "ssd"]
    found = rows.ablations(variants(swept))
    assert list(found) == ["branches B"]
    assert [row["value"] for row in found["branches B"]] == [8, 4, 6]
    assert {row["group"] for row in found["branches B"]} == {"ssd"}


def test_results_of_two_machines_or_of_other_prompts_are_not_compared() -> None:
    other = document()
    other["machine"]["device"] = "another CPU"
    with pytest.raises(SsdError, match=r"machines that differ in device \(a CPU and another CPU\)"):
        variants(document(), other)
    other = document()
    other["sets"]["code"]["sha256"] = "1" * 64
    with pytest.raises(SsdError, match="different prompts in the set 'code'"):
        variants(document(), other)
    assert variants(document(), document())[-1].label == "result1: ssd"


def test_all_sets_together_come_last() -> None:
    other = document()
    for part in (*other["figures"], *other["turns"]):
        part["set"] = "mine"
    other["sets"] = {"mine": other["sets"]["code"]}
    assert rows.sets_of(variants(document(), other)) == ["code", "chat", "mine", "all sets"]
