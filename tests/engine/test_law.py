"""Speculation leaves the target's law alone, through the engine: the joint law of the first three tokens, enumerated exactly.

20,000 requests a configuration; a chi-square test at 0.001 divided by the number of configurations. The law is computed from
transformers' float64 logits. Requests go on for two more tokens, so that the speculation behind the first outcome is verified
in full, hit or missed. Combinations that are left out follow from test_equality.py: sampled SSD = SD, token for token. Mutants
show that the check finds the mistakes it is there to find.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import reference
import tiny
from engine.cases import MakeEngine, accepted_in_all, hits_and_look_ups, tokens_of
from ops.statistics import chi_square_p
from ssd import Completion, SamplingParams, ops

V = 6
FIRST = 3  # tokens whose joint law is held
PROMPT = [1, 4, 2]
LOOKAHEAD, BUDGET = 2, 4

PROCESSINGS = {"temperature 1": {"temperature": 1.0}, "processed": {"temperature": 0.7, "top_p": 0.9}}
DRAWS = 20_000
CONFIGURATIONS = [
    ("ar", None, "processed"),
    ("sd", "trimmed", "temperature 1"),
    ("ssd", "draft", "temperature 1"),
    ("ssd", "trimmed", "processed"),
]
LEVEL = 0.001 / len(CONFIGURATIONS)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft, and one that cannot propose every token, each of one layer."""
    root = tmp_path_factory.mktemp("language")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny.write_model(
        root / "target", seed=7, logit_scale=1.5, vocab_size=V, num_key_value_heads=1, max_position_embeddings=16, **shape
    )
    tiny.write_draft_of(root / "target", root / "draft", noise=0.8)
    tiny.write_draft_of(root / "target", root / "trimmed", noise=0.8, vocabulary=[0, 2, 3, 4, 5])
    return root


@pytest.fixture(scope="module")
def next_logits(language: Path) -> Tensor:
    """Behind the prompt and every continuation shorter than FIRST, shortest first and then in order: [prefixes, V] float64."""
    tensors = tiny.load_file(language / "target" / "model.safetensors")
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(language / "target")).double().eval()
    model.load_state_dict(tensors)
    rows = []
    for length in range(FIRST):
        prefixes = torch.tensor([PROMPT + list(tokens) for tokens in product(range(V), repeat=length)])
        with torch.inference_mode():
            rows.append(model(prefixes).logits[:, -1])
    return torch.cat(rows)


def law(next_logits: Tensor, processing: dict[str, float]) -> Tensor:
    """[V ** FIRST] float64: the joint law of the first tokens, by the chain rule."""
    p = torch.stack(
        [reference.distribution(row, processing["temperature"], 0, processing.get("top_p", 1.0), 0.0) for row in next_logits]
    )
    joint, first = torch.ones(1, dtype=torch.float64), 0
    for length in range(FIRST):
        joint = (joint[:, None] * p[first : first + V**length]).flatten()
        first += V**length
    return joint


def decode(
    engine: MakeEngine, language: Path, mode: str, draft: str | None, processing: dict[str, float], draws: int
) -> list[Completion]:
    built = engine(
        mode, draft and str(language / draft), target=language / "target", lookahead=LOOKAHEAD, budget=BUDGET, max_batch=250,
    )  # fmt: skip
    params = [SamplingParams(**processing, max_new_tokens=FIRST + LOOKAHEAD, ignore_eos=True, seed=i) for i in range(draws)]
    completions: list[Completion] = built.decode([PROMPT] * draws, params)
    return completions


def p_value(completions: list[Completion], expected: Tensor) -> float:
    place = V ** torch.arange(FIRST - 1, -1, -1)
    first = torch.tensor(tokens_of(completions))[:, :FIRST]
    return chi_square_p((first * place).sum(1), expected)


@pytest.mark.parametrize("mode,draft,processing", CONFIGURATIONS)
def test_decoding_follows_the_target_s_law(
    engine: MakeEngine, language: Path, next_logits: Tensor, mode: str, draft: str | None, processing: str
) -> None:
    completions = decode(engine, language, mode, draft, PROCESSINGS[processing], DRAWS)
    assert p_value(completions, law(next_logits, PROCESSINGS[processing])) > LEVEL
    if mode != "ar":
        proposed = sum(c.stats.rounds * LOOKAHEAD for c in completions)
        assert 0.2 * proposed < sum(map(accepted_in_all, completions)) < 0.8 * proposed
    if mode == "ssd":
        hits, look_ups = hits_and_look_ups(completions)
        assert 0.2 * look_ups < hits < 0.8 * look_ups


def miss_compared_greedily(arguments: dict[str, Any]) -> None:
    """A miss accepts what the target's argmax equals, and goes on with the argmax, at any temperature."""
    missed = arguments["q_address"] == BUDGET
    logits = arguments["p_logits"][missed]
    slots, rows = logits.shape[:2]
    off, all_ids = torch.zeros(slots * rows), torch.zeros(slots * rows, dtype=torch.int32)
    greedy = ops.row_stats(logits.reshape(slots * rows, V), off, all_ids, off + 1, off)
    arguments["p_stats"] = arguments["p_stats"].clone()
    arguments["p_stats"][missed] = greedy.view(slots, rows, -1)


def hit_accepted_unverified(arguments: dict[str, Any]) -> None:
    """A hit's tokens are judged as if the target had drawn them."""
    address, half = arguments["q_address"], int(arguments["parity"])
    for name in ("logits", "stats"):
        q = arguments[f"q_{name}"] = arguments[f"q_{name}"].clone()
        for slot in ((address >= 0) & (address < BUDGET)).nonzero().flatten().tolist():
            q[slot, half, address[slot]] = arguments[f"p_{name}"][slot, :LOOKAHEAD]


@pytest.mark.parametrize("mutant", [miss_compared_greedily, hit_accepted_unverified])
def test_the_law_rejects(
    engine: MakeEngine,
    language: Path,
    next_logits: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[dict[str, Any]], None],
) -> None:
    def verify(*values: Any, **named: Any) -> Tensor:
        arguments = signature(ops.verify).bind(*values, **named).arguments
        if arguments["spec_tokens"].shape[1] > 0:  # not a prefill
            mutant(arguments)
        return ops.verify(**arguments)

    monkeypatch.setattr("ssd.decoding.verifier.ops", SimpleNamespace(verify=verify))
    completions = decode(engine, language, "ssd", "draft", PROCESSINGS["temperature 1"], 3_000)
    assert p_value(completions, law(next_logits, PROCESSINGS["temperature 1"])) < LEVEL
