"""Plans for devices that are described: models by shape, devices by bandwidth, times by their formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from ssd.errors import SsdError
from ssd.models.registry import default_draft
from ssd.models.shapes import SHAPES
from ssd.models.transformer import Transformer
from ssd.options import EngineOptions, WeightsName
from ssd.plan.devices import EXCHANGE_S, KNOWN, LAYER_S, REACHED, REDUCE_S, ROW_S, Device, assumptions, described, times
from ssd.plan.models import PlannedModel, planned_draft
from ssd.plan.prediction import sequences_that_fit
from ssd.simulate.rounds import Setting

RESULTS = Path(__file__).parents[2] / "profiling" / "results"
BF16 = torch.bfloat16


def shape(name: str, weights: WeightsName = "auto") -> PlannedModel:
    return PlannedModel.named(name, BF16, weights)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_pass_reads_what_the_loaded_model_reads(tmp_path: Path, tied: bool, weights: WeightsName) -> None:
    tiny.write_model(tmp_path, tie_word_embeddings=tied)
    planned = PlannedModel.named(str(tmp_path), torch.float32, weights)
    config = planned.config
    model = Transformer.from_tensors(
        config, tiny.random_tensors(config), torch.float32, torch.device("cpu"), positions=64, weights=weights
    )
    assert (planned.vocab_size, planned.dtype) == (model.vocab_size, model.dtype)
    assert planned.pass_bytes == pytest.approx(model.weight_bytes(), rel=0.02)  # int8 is packed with a little beside it
    assert planned.table_bytes == config.vocab_size * config.hidden_size * 4
    assert planned_draft("self:2", planned, weights).pass_bytes == pytest.approx(model.first_layers(2).weight_bytes(), rel=0.02)


def test_the_packaged_draft_has_no_embeddings_of_its_own() -> None:
    draft = shape(str(default_draft("smollm2-135m")))
    assert draft.vocab_size == 8192 and draft.table_bytes == 0
    assert draft.pass_bytes == pytest.approx(19e6, rel=0.02)  # int8


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.2-1B", "Qwen3-0.6B"])
def test_the_description_of_an_h100_predicts_the_passes_measured_on_one(name: str, weights: WeightsName) -> None:
    """In the committed results, which benchmarks.md shows."""
    *_, latest = sorted(RESULTS.glob("*nvidia-h100*-kernels.json"))
    form = "bf16" if weights == "auto" else "int8"
    measured = {
        row["shape"]["rows"]: row["us"]["median"]
        for row in json.loads(latest.read_text())["kernels"]
        if row["kernel"] == "pass" and (row["shape"]["model"], row["shape"]["weights"]) == (name, form)
    }
    for rows, us in measured.items():
        assert described("H100").pass_s(shape(name, weights), rows, 512) * 1e6 == pytest.approx(us, rel=0.2)


def test_the_times_of_a_round_follow_from_bytes_layers_and_rows() -> None:
    target, draft, device = shape("Llama-3.1-8B"), shape("Llama-3.2-1B"), Device("a device", 1e12, 80e9)
    setting = Setting("ssd", lookahead=4, budget=8, batch=2)
    apart = times(setting, target, draft, device, Device("another", 5e11, 80e9), 1000, 1e-5)

    def read_s(model: PlannedModel, bytes_per_s: float) -> float:
        return (model.pass_bytes + 2000 * model.kv_bytes_a_token) / (REACHED * bytes_per_s)

    assert apart.verify == pytest.approx(1e3 * (read_s(target, 1e12) + 32 * (LAYER_S + 9 * ROW_S)))
    assert apart.draft == pytest.approx(1e3 * (read_s(draft, 5e11) + 16 * (LAYER_S + ROW_S)))
    assert apart.branch == pytest.approx(1e3 * (read_s(draft, 5e11) + 16 * (LAYER_S + 15 * ROW_S)))
    assert apart.exchange == pytest.approx(1e3 * (EXCHANGE_S + 2e-5))
    shared = times(setting, target, draft, device, None, 1000, 1e-5)
    assert shared.verify == pytest.approx((target.pass_bytes + 5 * draft.pass_bytes) / REACHED / 1e9)
    assert shared.exchange == pytest.approx(1e3 * EXCHANGE_S)
    four = times(replace(setting, budget=0, mode="sd"), target, draft, replace(device, count=4), None, 1000, 0.0)
    assert four.verify == pytest.approx(1e3 * (read_s(target, 4e12) + 32 * (LAYER_S + 9 * ROW_S) + 64 * REDUCE_S))


def test_every_assumption_is_named() -> None:
    alone, second, four = (assumptions(described(on), own, 7, 2048, 0.9) for on, own in
                           (("H100", None), ("H100", described("L4")), ("4xH100", None)))  # fmt: skip
    for sentences in (alone, second, four):
        told = " ".join(sentences)
        for number in ("2048 tokens", "90% of 3350 GB/s", "18 µs a layer", "0.8 µs", "30 µs", "may use 90%"):
            assert number in told
    assert "7 µs a message" in alone[-1] and "7 µs each way" in second[-1]
    assert any("this is a projection" in sentence for sentence in four)


def test_devices_by_name_or_by_numbers() -> None:
    assert described("h100") == replace(described("1xH100"), name="H100")
    assert described("4xA100").count == 4 and described("4xA100").bytes_per_s == 2039e9
    made = described("2xbandwidth=40,memory=24,layer=30")
    assert (made.bytes_per_s, made.memory, made.layer_s, made.count) == (40e9, 24e9, 30e-6, 2)
    assert all(described(name).memory > 20e9 for name in KNOWN)


@pytest.mark.parametrize("text", ["H101", "", "x", "0xH100", "65xH100", "bandwidth=1", "bandwidth=a,memory=1",
                                  "bandwidth=1,memory=1,more=2", "bandwidth=nan,memory=1", "bandwidth=-1,memory=1"])  # fmt: skip
def test_a_wrong_device_is_refused(text: str) -> None:
    with pytest.raises(SsdError, match="the device is"):
        described(text)


def test_qwen_32b_on_one_h100_has_room_for_twenty_sequences() -> None:
    """65.5 GB of weights; 64 layers of 2 · 8 · 128 numbers of 2 bytes a token."""
    target, draft = shape("Qwen3-32B"), shape("Qwen3-0.6B")
    assert (
        target.stored_bytes == pytest.approx(65.5e9, rel=1e-3) and target.pass_bytes == target.stored_bytes - target.table_bytes
    )
    assert target.kv_bytes_a_token == 64 * 2 * 8 * 128 * 2
    options = EngineOptions.of("Qwen3-32B", lookahead=4, max_batch=1)
    memory = 0.9 * described("H100").memory - target.stored_bytes
    room = sequences_that_fit(options, target, draft, 8, memory, 75e9, 2048)
    assert room == int(memory / ((2048 + 16) * target.kv_bytes_a_token)) == 20
    together = sequences_that_fit(options, target, draft, 8, memory - draft.stored_bytes, None, 2048)
    assert together == 12  # the draft's K/V takes 0.11 MB a token beside the target's 0.26
    assert sequences_that_fit(options, target, draft, 8, -1.0, None, 2048) == 0


def test_a_draft_by_layers_must_be_a_part_of_the_target() -> None:
    with pytest.raises(SsdError, match="'self:1' to 'self:28'"):
        planned_draft("self:29", shape("Qwen3-0.6B"), "auto")
    assert set(SHAPES) >= {"Qwen3-32B", "Llama-3.1-70B"}
