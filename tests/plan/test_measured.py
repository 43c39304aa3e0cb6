"""Plans for this machine: times from decodes of random prompts, outcomes from reports and prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from simulate.test_rounds import STATS
from ssd.decoding.speed_model import expected_tokens
from ssd.errors import SsdError
from ssd.models.prompts import Prompt
from ssd.options import EngineOptions, SamplingParams
from ssd.plan import calibration
from ssd.plan.calibration import Calibrated, calibrate, engine_options, times_of
from ssd.plan.prediction import measured_outcomes, outcomes_of_draft, predict, times_apart
from ssd.runtime.placement import place
from ssd.serving.loading import LoadedModels, load_models
from ssd.simulate.outcomes import Outcomes
from ssd.simulate.rounds import Setting, Times, grid

SSD = replace(
    STATS, rounds=50, mean_acceptance_length=3.0, hits_per_k={0: (30, 40)}, t_verify_ms=10.0, t_draft_ms=8.0, t_fallback_ms=4.0,
    decode_tokens_per_s=250.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_model(folder / "target")
    tiny.write_draft_of(folder / "target", folder / "draft", noise=0.07)
    return EngineOptions.of(str(folder / "target"), draft=str(folder / "draft"), mode="ssd", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def models(options: EngineOptions) -> LoadedModels:
    return load_models(options, place(options), lambda fraction: None)


def test_the_times_of_rounds_add_up_to_the_mean_round() -> None:
    found = times_of(Setting("ssd", 4, 8), [SSD, SSD])  # a mean round takes 12 ms, and one in four waits 4 ms for a fallback
    assert found == Times(verify=10.0, token=10.0, draft=1.0, branch=(8.0 - 1.0) / 4, exchange=pytest.approx(1.0))
    sd = times_of(Setting("sd", 4), [replace(SSD, mode="sd", t_draft_ms=1.5, t_fallback_ms=None)])
    assert (sd.verify, sd.draft, sd.exchange) == (10.0, 1.5 / 4, pytest.approx(0.5))
    assert times_of(Setting("ar"), [replace(SSD, mode="ar")]).exchange == pytest.approx(2.0)
    assert times_of(Setting("ssd", 4, 8, batch=2), [SSD, SSD]).exchange == pytest.approx(2.0 - (1 - 0.75**2) * 4)


def test_a_calibration_times_every_setting(
    models: LoadedModels, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "RUNS", 2)
    settings, seen = grid([2, 3], [4], batch=2), []
    found = calibrate(models, options, settings, lambda done, of: seen.append((done, of)))
    assert list(found) == settings and seen[-1] == (15, 15)
    for setting, each in found.items():
        assert each.times.verify > 0
        assert (each.draft_alone_ms is not None) == (setting.mode == "ssd")
        assert (each.times.draft > 0) == (setting.mode != "ar")


def test_an_engine_of_a_setting_has_its_options(options: EngineOptions) -> None:
    own = engine_options(options, Setting("ssd", 3, 6, batch=2))
    speculation = own.speculation_options
    assert (own.mode, own.max_batch, speculation.lookahead, speculation.budget, own.threads) == ("ssd", 2, 3, 6, 1)
    assert engine_options(options, Setting("ar")).draft is None


def test_a_device_of_its_own_gives_each_role_the_times_that_it_has_alone() -> None:
    together, alone = Times(10.0, 10.0, 2.0, 3.0, 0.5), Times(8.0, 8.0, 1.0, 0.0, 0.1)
    found = times_apart(
        {
            Setting("ar"): Calibrated(alone, None),
            Setting("sd", 4): Calibrated(alone, None),
            Setting("ssd", 4, 8): Calibrated(together, 7.0),
            Setting("ssd", 6, 8): Calibrated(together, 7.0),
        }
    )
    assert found == {Setting("ssd", 4, 8): Times(8.0, 10.0, 1.0, 1.5, 0.5)}  # K = 6 has no "sd" beside it
    here, there = (
        predict([Setting("ssd", 4, 8)], Outcomes.assumed(8), {Setting("ssd", 4, 8): together}, apart)[0]
        for apart in ({}, found)
    )
    assert here.apart is None and there.apart is not None and there.apart > here.simulated.tokens_per_s


def test_a_draft_s_report_gives_the_acceptance(tmp_path: Path) -> None:
    assert outcomes_of_draft(str(tmp_path), "any", 8) is None
    scores = {"tokens_per_round": {"4": expected_tokens(4, 0.7)}}
    (tmp_path / "report.json").write_text(json.dumps({"held_out": {"all": scores}}))
    found = outcomes_of_draft(str(tmp_path), "any", 8)
    assert found is not None and found.acceptance == (pytest.approx(0.7),)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(SsdError, match=r"is not the report of `ssd distill`; give --acceptance\."):
        outcomes_of_draft(str(tmp_path), "any", 8)
    assert outcomes_of_draft("auto", "smollm2-135m", 8) is not None
    assert outcomes_of_draft(None, "smollm2-135m", 8) is None


def test_prompts_give_the_outcomes_of_a_decode(models: LoadedModels, options: EngineOptions) -> None:
    prompts: list[Prompt] = [[3, 4, 5], [6, 7, 8]]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    found = measured_outcomes(models, options, prompts, params, lookahead=3, budget=6)
    assert len(found.acceptance) == 3 and 0.3 < found.acceptance[0] <= 1
    assert found.hits(3, 6).min() >= 0 and found.after_rejection[-1] == 1.0
