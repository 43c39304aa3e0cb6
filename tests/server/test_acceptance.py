"""`metrics.speculative_decoding` in responses, as --per-request-spec-decode-metrics asks."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from server.conftest import MakeEngine
from server.live import live
from ssd.decoding.stats import Committed
from ssd.server.acceptance import speculative_decoding

PROMPT = "the one and the other"
BODY: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}


def test_rounds_without_drafted_tokens_do_not_count() -> None:
    rounds = [
        Committed(1),
        Committed(3, accepted=2, proposed=4),
        Committed(1, proposed=4),
        Committed(5, accepted=4, proposed=4),
    ]
    found = speculative_decoding(rounds, 4, "detailed")
    assert found == {
        "mean_acceptance_length": 3.0, "draft_acceptance_rate": 0.5, "acceptance_histogram": [1, 0, 1, 0, 1], "num_spec_steps": 3,
        "num_accepted_draft_tokens": 6, "num_draft_tokens": 12, "num_spec_tokens": 4, "per_step_accepted": [2, 0, 4],
        "per_step_drafted": [4, 4, 4],
    }  # fmt: skip
    none = speculative_decoding([Committed(1)], 2, "summary")
    assert (none["mean_acceptance_length"], none["draft_acceptance_rate"], none["acceptance_histogram"]) == (
        1.0,
        0.0,
        [0, 0, 0],
    )
    assert "per_step_accepted" not in none


@pytest.mark.parametrize(
    "options", [{"mode": "sd"}, {"mode": "ssd"}, {"mode": "sd", "tree": (2, 2)}], ids=["sd", "ssd", "tree"]
)
@pytest.mark.parametrize("level", ["summary", "detailed"])
def test_a_response_has_the_acceptance_of_its_request(engine: MakeEngine, options: dict[str, Any], level: str) -> None:
    one = engine(**options)
    with live(one, per_request_spec_decode_metrics=level) as served:
        whole = served.complete(PROMPT, **BODY).json()
        chat = served.chat(PROMPT, **BODY).json()
        streamed = served.complete(PROMPT, **BODY, stream=True, stream_options={"include_usage": True}).text
        silent = served.complete(PROMPT, **BODY, stream=True).text
    found = whole["metrics"]["speculative_decoding"]
    longest = 2 if "tree" in options else 4
    assert found["num_spec_tokens"] == longest and len(found["acceptance_histogram"]) == longest + 1
    assert sum(found["acceptance_histogram"]) == found["num_spec_steps"] > 0
    assert sum(n * count for n, count in enumerate(found["acceptance_histogram"])) == found["num_accepted_draft_tokens"] > 0
    assert ("per_step_accepted" in found) == (level == "detailed")
    assert chat["metrics"]["speculative_decoding"]["num_draft_tokens"] > 0
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    assert last["usage"] is not None and last["metrics"]["speculative_decoding"]["num_spec_steps"] > 0
    assert all("metrics" not in piece for piece in pieces) and "metrics" not in silent
    if options["mode"] == "sd":  # greedy rounds repeat themselves
        assert last["metrics"] == whole["metrics"]


def test_it_is_null_for_several_choices_and_without_a_draft_and_absent_unless_asked_for(engine: MakeEngine) -> None:
    null = {"metrics": {"speculative_decoding": None}}
    with live(engine(mode="sd"), per_request_spec_decode_metrics="summary") as served:
        assert served.complete(PROMPT, n=2, **BODY).json().items() >= null.items()
        assert served.complete([PROMPT, PROMPT], **BODY).json().items() >= null.items()
    with live(engine(mode="ar", draft=None), per_request_spec_decode_metrics="summary") as served:
        assert served.complete(PROMPT, **BODY).json().items() >= null.items()
    with live(engine(mode="sd")) as served:
        assert "metrics" not in served.complete(PROMPT, **BODY).json()
