"""The variants of a benchmark: every combination that means something of its own, once."""

from __future__ import annotations

import pytest

from ssd.bench.variants import variants_of
from ssd.errors import SsdError
from ssd.options import EngineOptions, SamplingParams

PARAMS = SamplingParams(max_new_tokens=8)


def names(options: EngineOptions, *sweeps: str) -> list[str]:
    return [each.name for each in variants_of(options, PARAMS, sweeps)]


def options(**given: object) -> EngineOptions:
    return EngineOptions.of("one", **({"draft": "self:1"} | given))


def test_all_modes_that_the_models_allow_are_swept_unless_the_mode_is_given() -> None:
    assert names(options()) == ["ar", "sd", "ssd"]
    assert names(options(draft=None)) == ["ar"]
    assert names(options(draft="ngram")) == ["ar", "sd"]
    assert names(options(tree=(2, 1))) == ["ar", "sd"]
    assert names(options(mode="sd")) == ["as given"]
    assert names(options(), "mode=ssd,ar") == ["ssd", "ar"]


def test_variants_that_mean_the_same_are_measured_once() -> None:
    found = variants_of(options(), PARAMS, ["lookahead=2,4", "budget=8,16"])
    assert [each.name for each in found] == [
        "ar",
        "sd K=2",
        "sd K=4",
        "ssd K=2 B=8",
        "ssd K=2 B=16",
        "ssd K=4 B=8",
        "ssd K=4 B=16",
    ]
    assert [each.options.mode for each in found] == ["ar", "sd", "sd", "ssd", "ssd", "ssd", "ssd"]
    assert found[-1].options.speculation_options.budget == 16
    assert found[0].options.draft is None
    assert names(options(mode="sd"), "budget=4,8", "fan_out=measured,uniform") == ["as given"]
    assert names(options(mode="ssd"), "fan_out=measured,uniform") == ["fan_out=measured", "fan_out=uniform"]


def test_a_budget_counts_in_sd_where_saguaro_sampling_takes_f_from_it() -> None:
    assert names(options(mode="sd", saguaro_c=0.5), "budget=4,8") == ["B=4", "B=8"]


def test_any_option_can_be_swept() -> None:
    assert names(options(mode="ar"), "weights=bf16,int8", "threads=1,2") == [
        "weights=bf16 threads=1", "weights=bf16 threads=2", "weights=int8 threads=1", "weights=int8 threads=2",
    ]  # fmt: skip
    assert names(options(mode="sd"), "tree=3,2/2,2,1") == ["tree=3,2", "tree=2,2,1"]
    assert names(options(mode="ssd", lookahead=1), "fan-out=4,4/uniform") == ["fan_out=4,4", "fan_out=uniform"]
    found = variants_of(options(mode="ar"), PARAMS, ["temperature=0,0.7", "--max-batch=1,8", "ignore_eos=true"])
    assert [each.name for each in found] == [
        "t=0.0 batch=1 ignore_eos=True", "t=0.0 batch=8 ignore_eos=True",
        "t=0.7 batch=1 ignore_eos=True", "t=0.7 batch=8 ignore_eos=True",
    ]  # fmt: skip
    assert (found[-1].params.temperature, found[-1].options.max_batch) == (0.7, 8)


@pytest.mark.parametrize(
    "sweep,said",
    [
        ("lookahead", "give an option and its values"),
        ("lookahead=", "give an option and its values"),
        ("speed=1,2", "give an option and its values"),
        ("lookahead=2,many", "'many' is no number"),
        ("ignore_eos=yes", "the values of ignore_eos are true and false"),
        ("lookahead=2,99", "lookahead is 99"),
        ("weights=int4", "weights is 'int4'"),
        ("mode=ssd,tree", "mode is 'tree'"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(sweep: str, said: str) -> None:
    with pytest.raises(SsdError, match=said):
        names(options(), sweep)


def test_a_mode_that_the_models_do_not_allow_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(SsdError, match="mode='ssd' needs a draft"):
        names(options(draft=None), "mode=ar,ssd")
