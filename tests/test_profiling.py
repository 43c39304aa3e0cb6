"""profiling/: requirements are judged by the worst figure, pages name what was not run, and tools without a GPU say so."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from ssd import Engine, SamplingParams
from ssd.errors import SsdError
from ssd.models import registry

PROFILING = Path(__file__).resolve().parents[1] / "profiling"


@pytest.fixture(autouse=True)
def _profiling_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROFILING))


def row(kernel: str, us: float, fraction: float, size: int = 0, **shape: Any) -> dict[str, Any]:
    return {"kernel": kernel, "shape": shape, "us": {"median": us}, "fraction_of_floor": fraction, "bytes": size, "peers": {}}


def test_a_requirement_is_judged_by_its_worst_case() -> None:
    from kernels import judged

    rows = [row("linear", 50, fraction, 200_000_000, rows=n) for n, fraction in ((1, 0.9), (8, 0.84), (16, 0.1))]
    (must,) = [m for m in judged(rows) if "100 MB" in m["what"]]
    assert (must["measured"], must["holds"]) == (0.84, False)


def test_a_ratio_of_times_compares_the_same_shape() -> None:
    from kernels import judged

    rows = [
        row("linear", us, 0.9, model="Llama-3.1-8B", weights="bf16", part="qkv", rows=n) for n, us in ((1, 20.0), (64, 25.0))
    ]
    (must,) = [m for m in judged(rows) if "64 rows" in m["what"]]
    assert (must["measured"], must["holds"]) == (1.25, True)


def test_a_requirement_without_timings_is_not_judged() -> None:
    from kernels import judged

    assert judged([]) == []


def test_a_result_is_named_by_its_date_its_device_and_its_run(tmp_path: Path) -> None:
    from common.results import RESULTS, write_result

    kept = sorted(RESULTS.glob("*.json"))
    assert kept
    for path in kept:
        written = write_result(json.loads(path.read_text(encoding="utf-8")), tmp_path)
        assert path.name in (written.name, *(f"{written.stem}-{part}.json" for part in ("ops", "gpu", "sanitizer")))
        same_text = written.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        assert same_text or path.name.endswith("-bench.json")  # `ssd bench` writes its own files
    kernels = {"what": "kernels", "machine": {"device": "some GPU (80 GB)", "date": "2030-01-01"}}
    assert write_result(kernels, tmp_path, "kernels-linear").name == "2030-01-01-some-gpu-80-gb-kernels-linear.json"


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_model_is_created_tensor_by_tensor(tied: bool) -> None:
    from shapes import model_shape, random_model

    model = random_model(model_shape(64, 32, 48, 2, 4, 2, 16, tied=tied, qk_norm=True), device="cpu")
    assert model.vocab_size == 64 and model.config.num_layers == 2


def test_engines_of_random_weights_share_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    import shapes
    from common.models import Models

    small = {"large": shapes.model_shape(96, 32, 48, 3, 4, 2, 16, tied=False, qk_norm=True)}
    small["little"] = shapes.model_shape(96, 32, 48, 1, 4, 2, 16, tied=True, qk_norm=False)
    monkeypatch.setattr(shapes, "SHAPES", small)
    models, options = Models("random:large", "random:little", {"dtype": "float32"}), {"threads": 1, "max_batch": 1}
    with models.engine("ar", **options) as ar, models.engine("ssd", **options) as ssd:
        assert (ar.mode, ssd.mode) == ("ar", "ssd")
        assert ar.target_model is ssd.target_model
        params = SamplingParams(max_new_tokens=12)
        assert ar.decode([5, 6], params).token_ids == ssd.decode([5, 6], params).token_ids
    with pytest.raises(SsdError, match="random:large"):
        Engine("random:large")


def test_a_bigram_draft_is_right_four_times_in_five_and_has_the_right_token_second(monkeypatch: pytest.MonkeyPatch) -> None:
    import shapes
    from common.models import Models

    large = shapes.model_shape(12_000, 128, 256, 3, 4, 2, 32, tied=False, qk_norm=True)
    monkeypatch.setattr(shapes, "SHAPES", {"large": large, "little": replace(large, hidden_size=96, num_layers=1)})
    following = torch.randperm(12_000, generator=torch.Generator().manual_seed(0)).tolist()
    models = Models("bigram:large", "bigram-draft:little", {"dtype": "bfloat16"})
    with models.engine("ssd", max_batch=1, fan_out="uniform", fallback="neural") as engine:
        found = engine.decode([5], SamplingParams(max_new_tokens=300, ignore_eos=True))
    assert found.token_ids == [token := 5, *(token := following[token] for _ in range(300))][1:]
    assert 0.7 < found.stats.accepted_at[0] / found.stats.rounds < 0.9
    assert found.stats.hit_rate > 0.85


def test_an_inflated_pair_has_the_small_pairs_acceptance_and_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    import shapes
    from common.models import SMALL, Models, ids_of

    try:
        registry.resolve(SMALL)
    except SsdError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(
        shapes,
        "SHAPES",
        {
            "wider": shapes.model_shape(49408, 640, 1600, 31, 12, 4, 64, tied=True, qk_norm=False),
            "wider draft": shapes.model_shape(49408, 608, 1536, 5, 9, 3, 64, tied=True, qk_norm=False),
        },
    )
    options = {"max_batch": 1, "fan_out": "uniform", "fallback": "neural"}
    params = SamplingParams(max_new_tokens=24)
    (prompt,) = ids_of(["Write a function that adds two numbers."])
    with Engine(SMALL, "auto", "ssd", dtype="float32", **options) as engine:
        expected = engine.decode(prompt, params)
    with Models("inflated:wider", "inflated-draft:wider draft", {"dtype": "float32"}).engine("ssd", **options) as engine:
        found = engine.decode(prompt, params)
    assert found.token_ids == expected.token_ids
    assert (found.stats.rounds, found.stats.hits_per_k) == (expected.stats.rounds, expected.stats.hits_per_k)
    assert expected.stats.hit_rate and found.stats.accepted_per_round > 0.5


@pytest.mark.parametrize("tool,options", [("rounds", ()), ("decode", ("--runs", "1")), ("rounds", ("--batch", "2"))])
def test_a_decode_with_random_weights_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str, options: tuple[str, ...]
) -> None:
    """From the command line to the page."""
    import shapes
    from pages import benchmarks

    large = shapes.model_shape(12_000, 32, 48, 3, 4, 2, 16, tied=False, qk_norm=True)
    monkeypatch.setattr(shapes, "SHAPES", {"large": large, "little": replace(large, num_layers=1)})
    monkeypatch.setattr("ssd.bench.machine.read_bandwidth", lambda threads: 1e10)
    common = [
        "--target",
        "random:large",
        "--draft",
        "random:little",
        "--prompts",
        "random",
        "--limit",
        "2",
        "--max-new-tokens",
        "24",
    ]
    monkeypatch.setattr(sys, "argv", [tool, *common, "--results", str(tmp_path), "--ignore-eos", *options])
    import_module(tool).main()
    (result,) = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    measured = result["rounds" if tool == "rounds" else "modes"]
    assert set(measured) == {"ar", "sd", "ssd"} and all(m["t_verify_ms"] > 0 for m in measured.values())
    if tool == "rounds":
        assert all(
            measured[mode]["gap_after_miss_ms"] > 0 and measured[mode]["gap_after_hit_ms"] is None for mode in ("ar", "sd")
        )
    assert measured["ssd"]["footprint" if tool == "rounds" else "hit_rate"] is not None
    page = benchmarks.page([result])
    assert "random:large" in page and "2 prompts of random" in page
    assert ("Projected for two devices" in page) == (tool == "rounds")


def test_a_published_reproduction_is_predicted_from_its_speed_at_one_lookahead(monkeypatch: pytest.MonkeyPatch) -> None:
    import reproduction

    from ssd.simulate.outcomes import Outcomes

    monkeypatch.setattr(reproduction, "ROUNDS", 40_000)
    outcomes = Outcomes.assumed(64, 0.78, reproduction.first_miss(0.78, 0.85))
    extra, wait = reproduction.hand_shake(outcomes)
    assert 0 < extra < wait < 7
    assert max(map(abs, reproduction.errors(outcomes, extra).values())) < 0.1


def test_the_requirements_on_rounds_on_a_gpu_are_judged() -> None:
    from pages.benchmarks import rounds_section
    from rounds import judged

    mode = {
        "t_verify_ms": 5.0, "t_draft_ms": 4.0, "hidden_draft_ms": 3.7, "gap_after_hit_ms": 0.012, "gap_after_miss_ms": 0.014,
        "model_over_measured": 1.04, "decode_tokens_per_s": 180.0, "tokens_per_round": 1.0, "hit_rate": 0.5,
        "model_tokens_per_s": 187.0, "footprint": {"target_pass_bytes": 16e9},
    }  # fmt: skip
    musts = judged({"ar": mode, "ssd": mode}, 3.2e12, two_devices=False)
    assert [(m["what"].split(",")[0], round(m["measured"], 3), m["holds"]) for m in musts] == [
        ("ar", 0.9, True),
        ("ar", 14.0, True),
        ("ar", 1.04, True),
        ("ssd", 12.0, False),
        ("ssd", 0.925, True),
        ("ssd", 1.04, True),
    ]
    settings = {
        "limit": 1, "prompts": "random", "prompts_sha256": None, "max_new_tokens": 8, "lookahead": 4, "budget": 8, "batch": 1,
        "device": "cuda", "target": "t", "draft": "d",
    }  # fmt: skip
    machine = {"device": "some GPU", "torch": "2", "commit": "abc", "date": "2030-01-01"}
    page = rounds_section({"what": "r", "machine": machine, "settings": settings, "rounds": {"ar": mode}, "musts": musts})
    assert "| ar, tokens/s by the model over measured | 0.9 to 1.1 | 1.04 | yes |" in page
    hop = "| ssd, µs between verifications after a hit, the wait for the draft left out | ≤ 10 | 12.00 | **no** |"
    assert hop in page
    waits = mode | {"t_draft_ms": 6.0, "gap_after_hit_ms": 1.012}
    page = rounds_section(
        {
            "what": "r",
            "machine": machine,
            "settings": settings,
            "rounds": {"ssd": waits},
            "musts": judged({"ssd": waits}, 3.2e12, two_devices=False),
        }
    )
    assert hop in page


def test_the_status_page_says_which_decodes_were_not_run() -> None:
    from common.results import GPU_DECODES
    from pages.gpu_status import decodes_table

    machine = {"device": "some GPU", "torch": "2", "commit": "abc", "date": "2030-01-01"}
    page = decodes_table([{"what": "decode-bigram", "machine": machine}])
    assert "(`decode-bigram`) | some GPU | abc | 2030-01-01 |" in page
    assert page.count("not yet run") == len(GPU_DECODES) - 1


def test_the_drafts_page_counts_repeating_texts_separately() -> None:
    from pages.benchmarks import drafts_section

    def row(prompts: int, mean: float) -> dict[str, Any]:
        return {"prompts": prompts, "mean": mean, "mean_95": [mean - 0.1, mean + 0.1], "pooled": mean}

    page = drafts_section(
        {
            "what": "drafts",
            "machine": {"device": "a CPU", "torch": "2", "commit": "c", "date": "d"},
            "settings": {"prompts": {"a.jsonl": "0" * 64}, "max_new_tokens": 8, "lookahead": 4, "target": "t"},
            "drafts": [
                {
                    "draft": "self:2", "layers": 2, "vocabulary": 100, "weight_bytes": 2_500_000, "all": row(5, 1.9),
                    "sets": {"a": {"all": row(5, 1.9), "in_a_circle": row(2, 3.5), "others": None}},
                    "steps": [{"rows": 1, "threads": 1, "ms": 0.5}, {"rows": 8, "threads": 2, "ms": 0.75}],
                }
            ],
        }
    )  # fmt: skip
    assert "| self:2 | 2 | 100 | 2.5 | 0.50 | 0.75 |" in page
    assert "| self:2 | a, running in a circle | 2 | 3.50 | 3.40 to 3.60 | 3.50 |" in page
    assert "others" not in page


def test_the_figures_in_the_readme_equal_the_result_files() -> None:
    from pages.readme import page, speed

    machine = {"device": "a CPU", "instruction_set": "avx512", "torch": "2", "commit": "c", "date": "d"}
    rate = {"median": 50.0}
    decode = {
        "what": "decode-smollm2-draft",
        "machine": machine,
        "settings": {
            "draft": "auto", "target": "t", "limit": 8, "prompts": "some.jsonl", "max_new_tokens": 128, "lookahead": 3, "threads": 2,
        },
        "modes": {
            "ar": {"decode_tokens_per_s": rate, "tokens_per_round": 1.0, "hit_rate": None},
            "sd": {"decode_tokens_per_s": {"median": 75.0}, "tokens_per_round": 2.2, "hit_rate": None},
        },
        "peers": {"llama.cpp": {"decode_tokens_per_s": [40.0, 42.0, 41.0]}},
    }  # fmt: skip
    drafts = {
        "what": "drafts",
        "machine": machine,
        "settings": {"lookahead": 4},
        "drafts": [{"draft": "auto", "all": {"mean": 2.25}, "sets": {"a": {"all": {"mean": 2.5}}}}],
    }
    text = speed([decode, drafts])
    assert "| ssd, mode `sd` | 75.0 | 1.50 | 2.20 | – |" in text
    assert "| llama.cpp | 41.0 | 0.82 | – | – |" in text
    assert "a 2.50; 2.25 over all" in text
    assert speed([]) == "Not measured yet.\n"
    assert text in page([decode, drafts])


def test_a_text_whose_ending_repeats_itself_is_recognised() -> None:
    from drafts import runs_in_a_circle

    words = list(range(100, 150))
    for circle, times, so in (
        ([1], 16, True),
        ([1], 15, False),
        ([1, 2, 3], 6, True),
        (list(range(9)), 3, True),
        (list(range(9)), 2, False),
    ):
        assert runs_in_a_circle(words + circle * times) is so
    assert not runs_in_a_circle(words) and not runs_in_a_circle([])


def test_the_status_page_names_every_op_and_everything_that_was_not_run() -> None:
    from pages.gpu_status import op_names, page

    assert set(op_names()) == {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd::")
    }
    text = page([])
    assert text.count("| not yet run | not yet run | not yet run |") == len(op_names())


def test_the_status_page_counts_the_tests_of_an_op() -> None:
    from pages.gpu_status import page

    machine = {"device": "some GPU", "torch": "2", "commit": "abc", "date": "2030-01-01"}
    run = {
        "what": "gpu-tests",
        "machine": machine,
        "outcomes": {"passed": 4},
        "skipped": {},
        "ops": {"fork": {"passed": 4, "failed": 1}},
    }
    assert "| `fork` | not yet run | 4 passed, **1 failed** | not yet run | some GPU | abc | 2030-01-01 |" in page([run])


def test_the_status_page_shows_kernel_times_and_their_limits() -> None:
    from common import musts
    from kernels import judged
    from pages.gpu_status import page

    rows = [row("fork", 16.0, 0.5, slots=1) | {"case": "1 slot", "floor_us": 8.0, "peers": {"torch": {"us": 40.0}}}]
    result = {
        "what": "kernels",
        "machine": {"device": "some GPU", "torch": "2", "commit": "abc", "date": "2030-01-01"},
        "read_bandwidth_bytes_per_s": 3e12,
        "launch_us": 1.0,
        "kernels": rows,
        "musts": judged(rows),
    }
    text = page([result])
    assert "| fork: 1 slot, K = 7: µs | ≤ 15 | 16.00 | **no** |" in text
    assert "| fork | 1 slot | 16.0 | 8.0 | 50% | torch: 40.0 |" in text
    assert musts.line(result["musts"][0]) == "DOES NOT HOLD: fork: 1 slot, K = 7: µs: 16 (≤ 15)"


def test_the_status_page_adds_up_the_parts_of_a_run() -> None:
    from pages.gpu_status import tests_on

    machine = {"device": "some GPU", "date": "2030-01-01"}
    part = {"what": "gpu-tests", "machine": machine, "outcomes": {"passed": 2}, "skipped": {"no": 1}, "failed": ["a"]}
    parts = [part | {"ops": {"fork": {"passed": 1, "failed": 0}}}, part | {"ops": {"fork": {"passed": 2, "failed": 1}}}]
    older = part | {"machine": machine | {"date": "2029-01-01"}, "ops": {"fork": {"passed": 50, "failed": 0}}}
    found = tests_on([older, *parts], "gpu-tests")
    assert found is not None
    assert (found["outcomes"], found["skipped"], found["failed"]) == ({"passed": 4}, {"no": 2}, ["a", "a"])
    assert found["ops"] == {"fork": {"passed": 3, "failed": 1}}
    assert tests_on([], "gpu-tests") is None


def test_a_run_that_is_cut_off_keeps_the_outcomes_so_far(tmp_path: Path) -> None:
    from results import Results

    plugin = Results(tmp_path, part="ops")
    for outcome in ("passed", "failed"):
        report = SimpleNamespace(
            when="call", outcome=outcome, nodeid=outcome, user_properties=[("ops", ["fork"])], longrepr=None,
            **{name: name == outcome for name in ("passed", "failed", "skipped")},
        )  # fmt: skip
        plugin.pytest_runtest_logreport(report)
        (file,) = tmp_path.iterdir()
        assert file.name.endswith("-cpu-tests-ops.json")
    written = json.loads(file.read_text())
    assert (written["outcomes"], written["failed"]) == ({"passed": 1, "failed": 1}, ["failed"])
    assert written["ops"] == {"fork": {"passed": 1, "failed": 1}}


def test_a_result_can_be_written_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssd.bench import machine

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SSD_COMMIT", raising=False)
    assert machine.describe()["commit"] is None
    monkeypatch.setenv("SSD_COMMIT", "abc")
    assert machine.describe()["commit"] == "abc"


# gpu_check --------------------------------------------------------------------------------------------------------------------


def test_steps_run_in_their_own_order_and_an_unknown_one_is_refused() -> None:
    from gpu_check import chosen_steps

    assert chosen_steps("gpu,build,ops") == ["build", "ops", "gpu"]
    with pytest.raises(argparse.ArgumentTypeError, match="there is no step 'tests'; choose from build,smoke"):
        chosen_steps("build,tests")


def test_a_command_that_fails_or_takes_too_long_costs_itself_only(capfd: pytest.CaptureFixture[str]) -> None:
    from gpu_check import run

    assert run("good", sys.executable, "-c", "pass", limit=60)
    assert not run("fault", sys.executable, "-c", "import os; os.abort()", limit=60)
    assert not run("endless", sys.executable, "-c", "import signal; signal.pause()", limit=0.1)
    said = capfd.readouterr().out
    assert "== good: done" in said and "== fault: FAILED, ended with -6" in said and "== endless: FAILED, was stopped" in said


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check

    monkeypatch.setattr(gpu_check, "missing", lambda package: package in ("gguf", "numpy"))
    assert gpu_check.missing_dependencies() == ["gguf", "numpy"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("tool", ["gpu_check.py", "kernels.py"])
def test_a_tool_says_in_one_sentence_that_there_is_no_gpu(tool: str) -> None:
    done = subprocess.run([sys.executable, PROFILING / tool], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("SKIPPED: ") and done.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("mode", ["ar", "ssd"])
def test_gaps_are_measured_while_a_long_prompt_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    from gaps import measure

    from ssd.serving import storing

    monkeypatch.setattr(storing, "PREFILL_CHUNK", 64)
    tiny.write_model(tmp_path, tokenizer=tiny.vocabulary_of_bytes(), vocab_size=288)
    with Engine(str(tmp_path), None if mode == "ar" else "self:2", mode, threads=1, max_batch=3) as engine:
        found = measure(engine, streams=2, prompt_tokens=300)
    assert found["chunks"] == 5
    assert found["longest_gap_ms"] > 0 and found["chunk_ms"] > 0 and found["round_ms"] > 0


def test_a_formats_quality_is_measured_against_the_first_formats(tmp_path: Path) -> None:
    """float32 agrees with itself; int8 nearly does."""
    import quality

    from ssd.models.transformer import Transformer
    from ssd.models.weights import load_checkpoint

    tiny.write_model(tmp_path)
    models = {}
    for weights in ("auto", "int8"):
        checkpoint = load_checkpoint(tmp_path, torch.float32)
        models[weights] = Transformer.from_tensors(
            checkpoint.config, checkpoint.tensors, torch.float32, torch.device("cpu"), 64, weights=weights
        )
    windows = torch.randint(models["auto"].vocab_size, (3, 40), generator=torch.Generator().manual_seed(0)).int()
    with torch.inference_mode():
        found = quality.measure(models, windows)
    assert found["auto"]["agreement"] == 1
    assert 0.8 < found["int8"]["agreement"] < 1
    assert found["int8"]["perplexity"] == pytest.approx(found["auto"]["perplexity"], rel=0.05)
