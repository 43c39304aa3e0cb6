"""Speculation by the engine does not change the target's distribution: the joint law of the first three tokens, enumerated
exactly.

20,000 requests per configuration, with a chi-square test at 0.001 divided by the number of configurations. The law is computed
from transformers' float64 logits. Requests decode two more tokens, so that the speculation after the first outcome, hit or
miss, is verified completely. By default only a few configurations run, because with the neural fallback sampled SSD equals
sampled SD token for token (test_equality.py), whatever the fan-out. --acceptance runs them all. Mutants show that the check
finds mistakes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
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
from engine.cases import MakeEngine, hits_and_look_ups, tokens_of
from ops.cases import sampling
from ops.mutants import compiler, load_mutants
from ops.statistics import chi_square_p
from ssd import Completion, SamplingParams, ops
from ssd.decoding.drafters.model import ModelDrafter
from ssd.decoding.fallback import FallbackPolicy
from ssd.kv.cache import KVCache, Rows
from ssd.models.transformer import Transformer

V = 6
FIRST = 3  # the number of tokens whose joint law is checked
PROMPT = [5, 0, 3, 1, 4, 2]  # every possible next token is in it already
LOOKAHEAD, BUDGET = 2, 4

PROCESSINGS = {"temperature 1": {"temperature": 1.0}, "processed": {"temperature": 0.7, "top_p": 0.9}}
DRAWS = 20_000


@dataclass(frozen=True)
class Configuration:
    mode: str
    draft: str | None = "draft"
    processing: str = "temperature 1"
    fan_out: str | tuple[int, ...] = "measured"
    fallback: str = "neural"
    saguaro_c: float = 1.0
    tree: tuple[int, ...] | None = None

    def __str__(self) -> str:
        cache = f"{self.fan_out} {self.fallback}" if self.mode == "ssd" else f"tree={self.tree}" if self.tree else "chain"
        return f"{self.mode} {self.draft} {cache} C={self.saguaro_c} {self.processing}"


DEFAULT = [
    Configuration("ar", None, "processed"),
    Configuration("sd", "ngram"),
    Configuration("sd", tree=(2, 2)),
    Configuration("sd", "trimmed", "processed", tree=(3, 1), saguaro_c=0.3),
    Configuration("ssd", saguaro_c=0.3),
    Configuration("ssd", fan_out="geometric", fallback="ngram", saguaro_c=0.3),
    Configuration("ssd", fan_out="uniform", fallback="auto"),
    Configuration("ssd", "trimmed", "processed", fallback="ngram"),
    Configuration("sd", "brief", tree=(2, 2)),
    Configuration("ssd", "brief", fallback="ngram"),
]
GRID = [
    *(Configuration("sd", draft, saguaro_c=c) for draft, c in product(("draft", "trimmed"), (1.0, 0.3))),
    *(Configuration("sd", tree=tree, saguaro_c=c) for tree, c in product(((2, 2), (3, 1)), (1.0, 0.3))),
    *(
        Configuration("ssd", fan_out=fan_out, fallback=fallback, saguaro_c=c)
        for fan_out, fallback, c in product(
            ("measured", "geometric", "uniform", (2, 0, 2)), ("neural", "ngram", "auto"), (1.0, 0.3)
        )
    ),
]
REST = [configuration for configuration in GRID if configuration not in DEFAULT]
LEVEL = 0.001 / (len(DEFAULT + REST) + 5)  # NOT_FINITE and NOT_FINITE_EITHER have 5


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft, a draft that cannot propose every token, and one whose context ends in the middle of a decode.

    Each has one layer.
    """
    root = tmp_path_factory.mktemp("language")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny.write_model(
        root / "target", seed=7, logit_scale=1.5, vocab_size=V, num_key_value_heads=1, max_position_embeddings=16, **shape
    )
    tiny.write_draft_of(root / "target", root / "draft", noise=0.8)
    tiny.write_draft_of(root / "target", root / "trimmed", noise=0.8, vocabulary=[0, 2, 3, 4, 5])
    tiny.write_draft_of(root / "target", root / "brief", noise=0.8, context=len(PROMPT) + LOOKAHEAD)
    return root


@pytest.fixture(scope="module")
def next_logits(language: Path) -> Tensor:
    """The logits after the prompt and after every continuation shorter than FIRST, by length, then in order: [prefixes, V]
    float64."""
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
    engine: MakeEngine, language: Path, monkeypatch: pytest.MonkeyPatch, how: Configuration, draws: int
) -> list[Completion]:
    """The fallback "auto" depends on the machine's speed, so here it chooses at random in every round."""
    coin = random.Random(0)
    monkeypatch.setattr(FallbackPolicy, "switch", lambda fallback, limit: coin.choice((0, limit)))
    draft = how.draft and (how.draft if how.draft == "ngram" else str(language / how.draft))
    built = engine(
        how.mode, draft, target=language / "target", lookahead=LOOKAHEAD, budget=BUDGET, max_batch=250,
        fan_out=how.fan_out, fallback=how.fallback, saguaro_c=how.saguaro_c, tree=how.tree,
    )  # fmt: skip
    processing = PROCESSINGS[how.processing]
    params = [SamplingParams(**processing, max_new_tokens=FIRST + LOOKAHEAD, ignore_eos=True, seed=i) for i in range(draws)]
    completions: list[Completion] = built.decode([PROMPT] * draws, params)
    assert not any(completion.degraded for completion in completions)
    return completions


def p_value(completions: list[Completion], expected: Tensor) -> float:
    place = V ** torch.arange(FIRST - 1, -1, -1)
    first = torch.tensor(tokens_of(completions))[:, :FIRST]
    return chi_square_p((first * place).sum(1), expected)


@pytest.mark.filterwarnings("ignore:the draft was trained for")
@pytest.mark.parametrize("how", [*DEFAULT, *(pytest.param(how, marks=pytest.mark.acceptance) for how in REST)], ids=str)
def test_decoding_follows_the_targets_law(
    engine: MakeEngine, language: Path, next_logits: Tensor, monkeypatch: pytest.MonkeyPatch, how: Configuration
) -> None:
    completions = decode(engine, language, monkeypatch, how, DRAWS)
    assert p_value(completions, law(next_logits, PROCESSINGS[how.processing])) > LEVEL
    if how.mode != "ar":
        rounds = sum(c.stats.rounds - c.stats.proposed_counts.get(0, 0) for c in completions)
        accepted = sum(c.stats.accepted_at[0] if c.stats.accepted_at else 0 for c in completions)
        assert 0.2 * rounds < accepted < 0.9 * rounds
    if how.mode == "ssd":
        hits, look_ups = hits_and_look_ups(completions)
        assert 0.2 * look_ups < hits < 0.9 * look_ups


# A draft that is not always finite --------------------------------------------------------------------------------------------

NOT_FINITE = [
    Configuration("sd", tree=(2, 2)),
    Configuration("ssd", saguaro_c=0.3),
    Configuration("ssd", fan_out="geometric", fallback="ngram"),
]
NOT_FINITE_EITHER = [Configuration("sd"), Configuration("sd", "trimmed", "processed", tree=(3, 1), saguaro_c=0.3)]


def spoil_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every draft's row after token 2 or 4 of the output NaN. No number of such rounds makes a draft count as failed."""
    monkeypatch.setattr("ssd.decoding.speculative.BAD_ROUNDS", 10**9)
    forward = Transformer.forward

    def run(model: Transformer, rows: Rows, cache: KVCache, every: int = 1) -> Tensor:
        hidden = forward(model, rows, cache, every)
        bad = (((rows.ids == 2) | (rows.ids == 4)) & (rows.positions >= len(PROMPT)))[every - 1 :: every]
        return hidden.masked_fill(bad[:, None], float("nan")) if any(model is m and cache is c for m, c in drafts) else hidden

    drafts: list[Any] = []
    make_drafter = ModelDrafter.__init__

    def make(drafter: ModelDrafter, *values: Any, **named: Any) -> None:
        make_drafter(drafter, *values, **named)
        drafts.append((drafter.model, drafter.kv_cache))

    monkeypatch.setattr(ModelDrafter, "__init__", make)
    monkeypatch.setattr(Transformer, "forward", run)


@pytest.mark.parametrize(
    "how", [*NOT_FINITE, *(pytest.param(how, marks=pytest.mark.acceptance) for how in NOT_FINITE_EITHER)], ids=str
)
@pytest.mark.usefixtures("eager_rounds")
def test_a_draft_that_is_not_always_finite_keeps_the_targets_law(
    engine: MakeEngine, language: Path, next_logits: Tensor, monkeypatch: pytest.MonkeyPatch, how: Configuration
) -> None:
    spoil_drafts(monkeypatch)
    completions = decode(engine, language, monkeypatch, how, DRAWS)
    assert p_value(completions, law(next_logits, PROCESSINGS[how.processing])) > LEVEL
    accepted = sum(c.stats.accepted_at[0] if c.stats.accepted_at else 0 for c in completions)
    assert accepted > 0.1 * sum(c.stats.rounds for c in completions)


@pytest.mark.parametrize("how", [Configuration("sd", tree=(2, 2)), Configuration("ssd")], ids=str)
@pytest.mark.usefixtures("eager_rounds")
def test_the_law_rejects_a_token_from_a_row_that_is_not_finite(
    engine: MakeEngine, language: Path, next_logits: Tensor, monkeypatch: pytest.MonkeyPatch, how: Configuration
) -> None:
    """A bad row proposes token 0, which is verified as if it had no probability of being drawn."""

    def sample(**arguments: Any) -> None:
        ops.sample(**arguments | {"spec_len": None, "bad": None})
        arguments["tokens"].clamp_min_(0)

    spoil_drafts(monkeypatch)
    monkeypatch.setattr("ssd.decoding.drafters.model.ops", SimpleNamespace(sample=sample))
    completions = decode(engine, language, monkeypatch, how, 3_000)
    assert p_value(completions, law(next_logits, PROCESSINGS[how.processing])) < LEVEL


# Mistakes that it must find ---------------------------------------------------------------------------------------------------


def miss_compared_greedily(arguments: dict[str, Any]) -> None:
    """A miss accepts tokens that equal the target's argmax, and continues with the argmax, at any temperature."""
    missed = arguments["q_address"] == BUDGET
    logits = arguments["p_logits"][missed]
    slots, rows = logits.shape[:2]
    off, all_ids = torch.zeros(slots * rows), torch.zeros(slots * rows, dtype=torch.int32)
    greedy = ops.row_stats(logits.reshape(slots * rows, V), off, all_ids, off + 1, off)
    arguments["p_stats"] = arguments["p_stats"].clone()
    arguments["p_stats"][missed] = greedy.view(slots, rows, -1)


def hit_accepted_unverified(arguments: dict[str, Any]) -> None:
    """A hit's tokens are verified as if the target had drawn them."""
    address, half = arguments["q_address"], int(arguments["parity"])
    for name in ("logits", "stats"):
        q = arguments[f"q_{name}"] = arguments[f"q_{name}"].clone()
        for slot in ((address >= 0) & (address < BUDGET)).nonzero().flatten().tolist():
            q[slot, half, address[slot]] = arguments[f"p_{name}"][slot, :LOOKAHEAD]


def saguaro_left_out_of_q(arguments: dict[str, Any]) -> None:
    """Tokens drawn with C are verified as if they had been drawn without it."""
    q = arguments["q_logits"].reshape(-1, V)
    arguments["q_stats"] = ops.row_stats(q, *sampling(len(q))).view_as(arguments["q_stats"])


def as_if_drawn(arguments: dict[str, Any], logit: float) -> None:
    """N-gram proposals are verified as if each had been drawn from a law with this logit for it and 0 for all others."""
    half, undrawn = int(arguments["parity"]), arguments["q_address"] < 0
    proposed = arguments["spec_tokens"]
    slots, rows = proposed.shape
    logits = torch.zeros(slots, rows, V).scatter_(2, proposed[:, :, None].long(), logit)
    stats = ops.row_stats(logits.view(-1, V), *sampling(slots * rows)).view(slots, rows, -1)
    for name, law in (("q_logits", logits), ("q_stats", stats)):
        known = arguments[name]
        q = torch.zeros(slots, 2, BUDGET + 1, rows, law.shape[2]) if known is None else known.clone()
        q[undrawn, half, BUDGET] = law[undrawn]
        arguments[name] = q
    arguments["q_address"] = torch.where(undrawn, BUDGET, arguments["q_address"])


def n_gram_taken_for_drawn(arguments: dict[str, Any]) -> None:
    """As if drawn from the uniform law."""
    as_if_drawn(arguments, 0.0)


def n_gram_accepted_where_it_can_be(arguments: dict[str, Any]) -> None:
    """They are accepted whenever p is above 0, as if they had been almost impossible to draw."""
    as_if_drawn(arguments, -30.0)


def p_value_of_mutant(
    engine: MakeEngine,
    language: Path,
    next_logits: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    how: Configuration,
    verify: Callable[..., Tensor],
) -> float:
    monkeypatch.setattr("ssd.decoding.verifier.ops", SimpleNamespace(verify=verify))
    completions = decode(engine, language, monkeypatch, how, 3_000)
    return p_value(completions, law(next_logits, PROCESSINGS[how.processing]))


@pytest.mark.parametrize(
    "mutant,how",
    [
        (miss_compared_greedily, Configuration("ssd")),
        (hit_accepted_unverified, Configuration("ssd", fan_out=(4, 0, 0))),
        (saguaro_left_out_of_q, Configuration("ssd", saguaro_c=0.3)),
        (saguaro_left_out_of_q, Configuration("sd", tree=(2, 2), saguaro_c=0.3)),
        (n_gram_taken_for_drawn, Configuration("sd", "ngram")),
        (n_gram_taken_for_drawn, Configuration("ssd", fallback="ngram")),
        (n_gram_accepted_where_it_can_be, Configuration("sd", "ngram")),
        (n_gram_accepted_where_it_can_be, Configuration("ssd", fallback="ngram")),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.usefixtures("eager_rounds")
def test_the_law_rejects_a_mistake(
    engine: MakeEngine,
    language: Path,
    next_logits: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[dict[str, Any]], None],
    how: Configuration,
) -> None:
    def verify(*values: Any, **named: Any) -> Tensor:
        arguments = signature(ops.verify).bind(*values, **named).arguments
        if arguments["spec_tokens"].shape[1] > 0:  # not a prefill
            mutant(arguments)
        return ops.verify(**arguments)

    assert p_value_of_mutant(engine, language, next_logits, monkeypatch, how, verify) < LEVEL


@pytest.mark.skipif(compiler() is None, reason="mutants are compiled, and there is no C++ compiler")
@pytest.mark.usefixtures("eager_rounds")
def test_the_law_rejects_a_sibling_that_is_left_in_q(
    engine: MakeEngine,
    language: Path,
    next_logits: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The second child of a node is tested against the distribution that the first one was drawn from."""
    verify = load_mutants(tmp_path_factory.mktemp("mutants"))["rejected_sibling_kept"].verify  # type: ignore[attr-defined]
    how = Configuration("sd", tree=(3, 1))
    assert p_value_of_mutant(engine, language, next_logits, monkeypatch, how, verify) < LEVEL
