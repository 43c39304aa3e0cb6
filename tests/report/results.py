"""A made result of `ssd bench`, imported as `report.results`."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from ssd.bench.figures import of_turns
from ssd.bench.results import FORMAT
from ssd.decoding.stats import Stats
from ssd.fields import flat
from ssd.options import EngineOptions, SamplingParams

MODES = {"ar": (1.0, 10.0), "sd": (3.0, 13.0), "ssd": (3.0, 11.0)}  # tokens and milliseconds of a round
PROMPTS, ROUNDS = 3, 100


def stats(mode: str, prompt: int) -> Stats:
    """A sequence whose next tokens are among F guesses with the chance 1 − 0.5 / F."""
    tokens, ms = MODES[mode]
    ssd = mode == "ssd"
    drafts = mode != "ar"
    ms += 0.5 * prompt
    outside = [0.5 / f for f in range(1, 9)]
    ranks = {0: 5000, **{r: round(10_000 * (outside[r - 1] - outside[r])) for r in range(1, 8)}, 900: 625}
    return Stats(
        mode=mode, rounds=ROUNDS, mean_acceptance_length=tokens, accepted_per_round=tokens - 1, acceptance_rate=0.5 if drafts else None,
        hit_rate=0.6 if ssd else None, hits_per_k={0: (30, 60), 2: (30, 40)} if ssd else {}, rank_counts=ranks if ssd else {},
        rank_counts_whole={0: 1000} if ssd else {}, proposed_counts={2: ROUNDS} if drafts else {0: ROUNDS},
        accepted_at=[60, 30] if drafts else [], t_verify_ms=9.0 if mode == "sd" else 9.5, t_draft_ms=3.0 if drafts else None,
        t_fallback_ms=2.0 if ssd else None, hidden_draft_ms=3.0 if ssd else None, branches_unused=700 if ssd else 0, cached_tokens=0,
        decode_tokens_per_s=1e3 * tokens / ms, time_to_first_token_s=0.1,
    )  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """changes: top-level fields that differ."""
    options = {
        mode: flat(EngineOptions.of("target", draft=None if mode == "ar" else "draft", mode=mode, max_batch=1))  # type: ignore[arg-type]
        | flat(SamplingParams())
        for mode in MODES
    }
    spans = [
        (lane, name, 10.0 * turn + start, 10.0 * turn + end)
        for turn in range(9)
        for lane, name, start, end in (
            ("target", "verify", 0.0, 9.0), ("draft", "speculate", 0.0, 3.0), ("draft", "branch 0", 0.5, 1.5),
            ("draft", "branch 1", 1.5, 3.0),
        )
    ]  # fmt: skip
    turns = [
        {
            "run": 0,
            "set": each,
            "variant": mode,
            "seconds": 1.0,
            "greedy": True,
            "threads": 1,
            "weight_bytes": 10**8,
            "draft_weight_bytes": None if mode == "ar" else 10**7,
            "prompt_tokens": [5] * PROMPTS,
            "spans_ms": spans if each == "code" else [],
            "sequences": [{"tokens": 301, "token_ids_sha256": "0", "stats": asdict(stats(mode, i))} for i in range(PROMPTS)],
        }
        for each in ("code", "chat")
        for mode in MODES
    ]
    machine = {"device": "a CPU", "cores": 2, "instruction_set": "avx512", "date": "2026-01-01", "ssd": "0.1.0", "commit": None}
    found = {
        "what": "bench",
        "format": FORMAT,
        "machine": {**machine, "read_bandwidth_bytes_per_s": {"1": 2e10}},
        "runs": 1,
        "sets": {each: {"prompts": PROMPTS, "sha256": "0" * 64} for each in ("code", "chat")},
        "variants": options,
        "figures": of_turns(turns, list(MODES), dict.fromkeys(MODES, 0.005)),
        "peer_figures": [{"set": "code", "peer": "other", "decode_tokens_per_s": [50.0, 52.0]}],
        "turns": [*turns, {"run": 0, "set": "code", "peer": "other", "answer": {}}],
    }
    return copy.deepcopy(found | changes)
