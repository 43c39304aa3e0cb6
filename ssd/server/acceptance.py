"""What a response says of its request's speculation, in vLLM's form (--per-request-spec-decode-metrics)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ssd.decoding.stats import Committed

Level = Literal["none", "summary", "detailed"]


def speculative_decoding(rounds: Sequence[Committed], spec_tokens: int, level: Level) -> dict[str, Any]:
    """rounds: of a request, after its prefill; those without drafted tokens do not count. spec_tokens: the most that a round
    accepts. "detailed" also has the numbers of each round."""
    steps = [each for each in rounds if each.proposed]
    accepted, drafted = [each.accepted for each in steps], [each.proposed for each in steps]
    counts = [accepted.count(n) for n in range(spec_tokens + 1)]
    found = {
        "mean_acceptance_length": 1 + sum(accepted) / max(1, len(steps)),
        "draft_acceptance_rate": sum(accepted) / max(1, sum(drafted)),
        "acceptance_histogram": counts,
        "num_spec_steps": len(steps),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "num_spec_tokens": spec_tokens,
    }
    return found | ({"per_step_accepted": accepted, "per_step_drafted": drafted} if level == "detailed" else {})
