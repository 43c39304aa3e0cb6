"""Simulated decodes against real ones, on a tiny pair whose passes last a given time.

    python profiling/simulated.py [--look-ups 6400]

Times, of each batch size, and outcomes come from decodes with one K and B. They predict decodes of other prompts with another K
and B; then these are measured. Passes wait, so that other work on the machine hardly changes a time.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from ssd import Engine, SamplingParams
from ssd.bench.statistics import hit_rate, total_hits
from ssd.decoding.stats import Stats
from ssd.plan.calibration import times_of
from ssd.simulate.outcomes import Outcomes
from ssd.simulate.rounds import Setting, simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny

PACE = (20.0, 10.0)  # milliseconds of a target pass and of a draft pass
TOKENS = 400  # of a sequence
RECORDED = {batch: Setting("ssd", 4, 10, batch) for batch in (1, 4, 8)}
PREDICTED = [
    Setting("ssd", lookahead, budget, batch)
    for lookahead, budget, batch in ((2, 6, 1), (2, 12, 4), (3, 8, 4), (4, 16, 4), (4, 8, 8), (3, 16, 8))
]
ROUNDS = 1_000_000  # simulated


def measured(folder: Path, setting: Setting, look_ups: int, seed: int) -> list[Stats]:
    """Decodes until so many outcomes were looked up, a batch at a time."""
    stats: list[Stats] = []
    options = {"lookahead": setting.lookahead, "budget": setting.budget, "fallback": "neural", "max_batch": setting.batch}
    with Engine(str(folder / "target"), str(folder / "draft"), "ssd", pace=PACE, dtype="float32", **options) as engine:
        while sum(each.rounds - 1 for each in stats) < look_ups:
            seeds = range(seed + len(stats), seed + len(stats) + setting.batch)
            prompts = [random.Random(each).choices(range(3, tiny.SIZES["vocab_size"]), k=16) for each in seeds]
            params = [SamplingParams(temperature=1.0, max_new_tokens=TOKENS, ignore_eos=True, seed=each) for each in seeds]
            stats += [completion.stats for completion in engine.decode(prompts, params)]
    return stats


def rate(stats: list[Stats]) -> tuple[float, float]:
    """Tokens per second of a sequence, and milliseconds a round, pooled."""
    seconds = sum((TOKENS - 1) / (each.decode_tokens_per_s or 0.0) for each in stats)
    return len(stats) * (TOKENS - 1) / seconds, seconds / sum(each.rounds for each in stats) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look-ups", type=int, default=6400, help="least number of look-ups of each decode")
    look_ups = parser.parse_args().look_ups
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.write_model(folder / "target")
        tiny.write_draft_of(folder / "target", folder / "draft", noise=0.07)
        recorded = {
            batch: measured(folder, each, look_ups * batch // 8, seed=1_000_000 * batch) for batch, each in RECORDED.items()
        }
        outcomes = Outcomes.recorded([each for stats in recorded.values() for each in stats])
        times = {batch: times_of(RECORDED[batch], stats) for batch, stats in recorded.items()}
        for batch, each in times.items():
            print(f"recorded, batch {batch}: {each}", flush=True)
        print(f"accepted by position: {[round(a, 3) for a in outcomes.acceptance]}")
        for number, setting in enumerate(PREDICTED):
            predicted = simulate(setting, outcomes, times[setting.batch], ROUNDS, number)
            found = measured(folder, setting, look_ups, seed=10_000 * (number + 1))
            tokens_per_s, round_ms = rate(found)
            assert predicted.hit_rate is not None
            print(
                f"K = {setting.lookahead}, B = {setting.budget:2}, batch {setting.batch}: {tokens_per_s:6.2f} tokens/s, simulated "
                f"{predicted.tokens_per_s:6.2f} ({predicted.tokens_per_s / tokens_per_s - 1:+.1%}); {round_ms:.1f} ms a round, "
                f"{predicted.round_ms:.1f}; hit rate {hit_rate(found):.3f}, {predicted.hit_rate:.3f} of {total_hits(found)} hits",
                flush=True,
            )


if __name__ == "__main__":
    main()
