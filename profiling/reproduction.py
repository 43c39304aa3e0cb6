"""The simulator against a published reproduction of the paper: Qwen3-32B on four H100s, its draft on a fifth.

    python profiling/reproduction.py

Published: a verification takes 11.5 ms, a branch step of Qwen3-0.6B 2.54 ms; the fan-out is 3; hit rates are 80 to 90 %.
At K = 4 that is one equation for three unknowns: acceptance, hit rate, and the hand-shake, by which a round is longer than its
passes. So each line takes one acceptance and one hit rate, solves for the hand-shake at K = 4, and predicts the rest.

The last table is the same pair with the draft's passes as `ssd plan` expects them, and no hand-shake.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from ssd.plan.devices import described, times
from ssd.plan.models import PlannedModel
from ssd.simulate.outcomes import Outcomes, crossing
from ssd.simulate.rounds import Setting, Times, grid, simulate

VERIFY, STEP, FAN_OUT = 11.5, 2.54, 3  # ms, ms, guesses for each accepted count
SSD = {4: 210.9, 5: 193.6, 6: 175.3, 7: 158.6}  # tokens/s by K
SD_K, SD = 6, 141.4
ROUNDS, SEED = 400_000, 0
CONTEXT = 512


def setting(lookahead: int) -> Setting:
    return Setting("ssd", lookahead, FAN_OUT * (lookahead + 1))


def predict(of: Setting, outcomes: Outcomes, hand_shake: float) -> float:
    """Tokens/s. A plain draft step is taken to last as long as a branch step: both are limited by launches there."""
    return simulate(of, outcomes, Times(VERIFY, VERIFY, STEP, STEP, hand_shake), ROUNDS, SEED).tokens_per_s


def first_miss(acceptance: float, hit_rate: float) -> float:
    """The c of 1 − h(F) = c / F that gives this hit rate at K = 4."""

    def hits_more(first_miss: float) -> bool:
        outcomes = Outcomes.assumed(64, acceptance, first_miss)
        found = simulate(setting(4), outcomes, Times(VERIFY, VERIFY, STEP, STEP), ROUNDS // 10, SEED).hit_rate
        return found is not None and found > hit_rate

    return crossing(hits_more, steps=20)


def hand_shake(outcomes: Outcomes) -> tuple[float, float]:
    """The milliseconds that fit the speed at K = 4, and how long the target then waits in a round."""
    plain = simulate(setting(4), outcomes, Times(VERIFY, VERIFY, STEP, STEP), ROUNDS, SEED)
    round_ms = 1e3 * plain.tokens_per_round / SSD[4]
    return round_ms - plain.round_ms, round_ms - VERIFY


def errors(outcomes: Outcomes, extra: float) -> dict[str, float]:
    """Predicted over published, less 1, for the settings that the fit did not use. extra: the hand-shake."""
    found = {f"K = {k}": predict(setting(k), outcomes, extra) / SSD[k] - 1 for k in SSD if k != 4}
    return found | {"sd": predict(Setting("sd", SD_K), outcomes, 0.0) / SD - 1}


def main() -> None:
    print("published: " + ", ".join(f"K = {k} {speed}" for k, speed in SSD.items()) + f"; sd, K = {SD_K} {SD} tokens/s")
    print("free parameters, how long the target waits in a round, and the errors of the predicted tokens/s (simulated)")
    for acceptance, hits in product((0.76, 0.78, 0.80, 0.82, 0.84, 0.88), (0.80, 0.85, 0.90)):
        outcomes = Outcomes.assumed(64, acceptance, first_miss(acceptance, hits))
        extra, wait = hand_shake(outcomes)
        told = ", ".join(f"{name} {error:+.1%}" for name, error in errors(outcomes, extra).items())
        print(f"acceptance {acceptance:.2f}, hit rate {hits:.0%}: hand-shake {extra:5.2f} ms, wait {wait:4.1f} ms; {told}")

    target, draft = (PlannedModel.named(name, torch.bfloat16, "auto") for name in ("Qwen3-32B", "Qwen3-0.6B"))
    four, one = described("4xH100"), described("H100")
    outcomes = Outcomes.assumed(64, 0.80, first_miss(0.80, 0.85))
    print("\nthe same pair, acceptance 0.80, with this project's predicted draft and no hand-shake (simulated, not measured)")
    found = []
    for each in grid(range(2, 13), (8, 16, 24, 32, 48), 1):
        own = replace(times(each, target, draft, four, one, CONTEXT, 1e-5), verify=VERIFY, token=VERIFY, exchange=0.0)
        found.append(simulate(each, outcomes, own, ROUNDS, SEED))
    for mode in ("ar", "sd", "ssd"):
        best = max((each for each in found if each.setting.mode == mode), key=lambda each: each.tokens_per_s)
        print(
            f"{best.name}: {best.tokens_per_s:.1f} tokens/s, {best.round_ms:.2f} ms a round, hit rate {best.hit_rate or 0:.0%}"
        )


if __name__ == "__main__":
    main()
