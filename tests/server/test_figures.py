"""The figures of /metrics are those of the requests that ended."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from server.cases import eventually
from server.conftest import MakeEngine
from server.live import live
from ssd import Engine, SamplingParams
from ssd.kv.prefix import PrefixCache
from ssd.native import PageAllocator

PROMPTS = ["one", "the other", "and a third one"]
PARAMS = SamplingParams(max_new_tokens=40, ignore_eos=True)
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_pages_in_use", "degraded")


def test_tokens_and_requests_are_counted(engine: MakeEngine) -> None:
    with live(engine()) as served:
        answers = [served.complete(prompt, max_tokens=20, ignore_eos=True).json()["usage"] for prompt in PROMPTS]
        eventually(lambda: [served.figures()[f"ssd:{name}"] for name in GAUGES] == [0] * 4)  # an answer comes before its end
        figures = served.figures()
    assert figures['ssd:requests_ended_total{finished_reason="length"}'] == 3
    assert figures["ssd:prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in answers)
    assert figures["ssd:generation_tokens_total"] == 60
    assert figures["ssd:time_to_first_token_seconds_count"] == 3
    assert figures["ssd:e2e_request_latency_seconds_count"] == 3
    assert figures["ssd:e2e_request_latency_seconds_sum"] >= figures["ssd:time_to_first_token_seconds_sum"] > 0
    assert figures["ssd:kv_pages"] == 4 * 33  # four slots of 512 + 4 tokens, 16 a page


@pytest.mark.parametrize("mode", ["sd", "ssd"])
def test_the_counters_of_speculation_are_the_completions_own(engine: MakeEngine, mode: str) -> None:
    one: Engine = engine(mode=mode, fan_out="uniform", fallback="neural")
    truth = [one.decode(prompt, PARAMS, raw=True).stats for prompt in PROMPTS]
    with live(one) as served:
        for prompt in PROMPTS:
            served.complete(prompt, max_tokens=40, ignore_eos=True).raise_for_status()
        figures = served.figures()
    proposed = sum(length * rounds for stats in truth for length, rounds in stats.proposed_counts.items())
    assert figures["ssd:spec_decode_num_drafts_total"] == sum(
        rounds for stats in truth for length, rounds in stats.proposed_counts.items() if length
    )
    assert figures["ssd:spec_decode_num_draft_tokens_total"] == proposed > 0
    by_position = [sum(stats.accepted_at[i] for stats in truth if len(stats.accepted_at) > i) for i in range(4)]
    assert figures["ssd:spec_decode_num_accepted_tokens_total"] == sum(by_position) > 0
    name = "ssd:spec_decode_num_accepted_tokens_per_pos_total"
    assert [figures.get(f'{name}{{position="{i}"}}', 0) for i in range(4)] == by_position
    for accepted in range(5):
        hits, look_ups = (sum(stats.hits_per_k.get(accepted, (0, 0))[i] for stats in truth) for i in (0, 1))
        assert figures.get(f'ssd:cache_hits_total{{accepted="{accepted}"}}', 0) == hits
        assert figures.get(f'ssd:cache_look_ups_total{{accepted="{accepted}"}}', 0) == look_ups
    assert any(name.startswith("ssd:cache_hits") for name in figures) == (mode == "ssd")


def test_the_prefix_cache_is_seen_in_usage_and_figures(engine: MakeEngine) -> None:
    prompt = " ".join(PROMPTS * 4)
    with live(engine()) as served:
        first, second, others = (
            served.complete(prompt, max_tokens=4, ignore_eos=True, **more).json()["usage"]
            for more in ({}, {}, {"n": 3, "cache_salt": "other"})
        )
        eventually(lambda: served.figures()["ssd:kv_pages_in_use"] == 0)
        figures = served.figures()
    length = first["prompt_tokens"]
    full = (length - 2) // 16 * 16
    assert full > 16
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second, others)]
    assert cached == [0, full, 0]
    assert figures["ssd:prefix_cache_queries_total"] == 5 * length
    assert figures["ssd:prefix_cache_hits_total"] == 3 * full  # the second request, and two of the three choices
    assert figures["ssd:kv_pages_kept"] >= 2 * full / 16
    assert figures["ssd:prefix_cache_evictions_total"] == figures["ssd:num_preemptions_total"] == 0


def test_preemptions_and_evictions_are_counted(engine: MakeEngine) -> None:
    one = engine(max_context=128)
    one.core.scheduler.pages = PrefixCache(PageAllocator(1 + 12))
    with live(one) as served:
        answers = served.complete(PROMPTS, max_tokens=100, ignore_eos=True).json()
        figures = served.figures()
    assert [choice["finish_reason"] for choice in answers["choices"]] == ["length"] * 3
    assert figures["ssd:num_preemptions_total"] > 0 and figures["ssd:prefix_cache_evictions_total"] > 0
