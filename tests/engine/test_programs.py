"""A round's programs call the project's ops, and take views; nothing else. On a GPU any other op of torch would be one more
node of the round's graph. A program returns only tables that exist before it runs, so that every round uses the same memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.cases import MakeEngine, random_prompts
from ssd import SamplingParams
from ssd.decoding.round import VerifyOutput
from ssd.runtime.executor import EagerExecutor

pytestmark = pytest.mark.usefixtures("eager_rounds")

VIEWS = {
    "aten::alias",
    "aten::expand",
    "aten::select.int",
    "aten::slice.Tensor",
    "aten::split_with_sizes",
    "aten::view",
    # The eager executor reads the flags of a condition on the host, by tolist(). A graph has a conditional node instead.
    "aten::resolve_conj",
    "aten::resolve_neg",
}
ONCE = {"prefill"}  # a prompt's programs, which are never repeated

GREEDY = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (12, 9, 15)]
SAMPLED = [SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=n, ignore_eos=True, seed=n) for n in (12, 9, 15)]


def storages(values: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class Recorder(TorchDispatchMode):
    """Notes the ops of one program, and the memory that they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.allocated: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.ops[func.name()] += 1
        self.allocated |= storages(result) - storages((args, kwargs))
        return result


@dataclass
class Programs:
    """The ops of each program, by its name, and the programs that returned memory of their own."""

    ops: dict[str, Counter[str]] = field(default_factory=dict)
    returned: set[str] = field(default_factory=set)

    def foreign(self) -> dict[str, list[str]]:
        found = {name: [op for op in ops if not op.startswith("ssd::") and op not in VIEWS] for name, ops in self.ops.items()}
        return {name: ops for name, ops in found.items() if ops}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """What the programs of all rounds do, from now on. Their reports are read later, outside."""
    found, run = Programs(), EagerExecutor._run

    def watched(self: EagerExecutor, lane: str, name: str, program: Callable[[], Any], **details: Any) -> Any:
        def recorded() -> Any:
            with Recorder() as recorder:
                value = program()
            tables = [value.logits, value.path, value.report] if isinstance(value, VerifyOutput) else value
            found.ops.setdefault(name, Counter()).update(recorder.ops)
            if storages(tables) & recorder.allocated:
                found.returned.add(name)
            return value

        return run(self, lane, name, program if name in ONCE else recorded, **details)

    monkeypatch.setattr(EagerExecutor, "_run", watched)
    return found


CASES: dict[str, tuple[str, str | None, dict[str, Any], set[str]]] = {
    "ar": ("ar", None, {}, {"verify"}),
    "sd, chain": ("sd", "draft", {}, {"draft", "verify"}),
    "sd, trimmed chain": ("sd", "trimmed", {"saguaro_c": 0.5}, {"draft", "verify"}),
    "sd, tree": ("sd", "draft", {"tree": (3, 2, 1)}, {"draft", "verify", "compact"}),
    "sd, n-grams": ("sd", "ngram", {}, {"draft", "verify"}),
    "ssd, neural fallback": ("ssd", "draft", {"fallback": "neural"}, {"look up", "speculate", "verify"}),
    "ssd, trimmed, neural fallback": ("ssd", "trimmed", {"fallback": "neural"}, {"look up", "speculate", "verify"}),
    "ssd, n-gram fallback": ("ssd", "draft", {"fallback": "ngram"}, {"look up", "speculate", "verify"}),
}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", CASES)
def test_a_program_calls_only_our_ops_and_views(
    engine: MakeEngine, programs: Programs, case: str, params: list[SamplingParams]
) -> None:
    mode, draft, options, names = CASES[case]
    completions = engine(mode, draft, max_batch=3, **options).decode(random_prompts((5, 17, 9)), params)
    assert {completion.stats.mode for completion in completions} == {mode} and not any(c.degraded for c in completions)
    assert set(programs.ops) == names
    assert programs.foreign() == {}
    assert programs.returned == set()


def test_the_record_shows_another_op_and_a_new_table(programs: Programs) -> None:
    """What it must find: arithmetic of torch, and memory that is returned."""
    from ssd.runtime.trace import Trace

    executor, table = EagerExecutor(Trace()), torch.zeros(3)
    executor.run("target", "verify", lambda: table[1:].add_(1), 1)
    assert programs.foreign() == {"verify": ["aten::add_.Tensor"]} and programs.returned == set()
    executor.run("target", "verify", lambda: table + 1, 1)
    assert programs.returned == {"verify"}
    executor.close()


@pytest.mark.parametrize(
    "mode, program, forward_ops, others",
    [
        ("ar", "verify", 1, {"tree_rows": 1, "logits": 1, "row_stats": 1, "verify": 1}),
        ("sd", "draft", 4, {"cache_lookup": 1, "tree_rows": 4, "row_stats": 4, "sample": 4}),
        ("ssd", "speculate", 5, {"tree_rows": 1, "logits": 1, "fork": 1, "branch_rows": 4, "row_stats": 4, "sample": 4}),
    ],
)
def test_a_program_has_as_many_ops_as_the_documentation_says(
    engine: MakeEngine, programs: Programs, mode: str, program: str, forward_ops: int, others: dict[str, int]
) -> None:
    """With K = 4: passes of the model, and the ops around them."""
    one = engine(mode, max_batch=1, lookahead=4)
    rounds = one.decode(random_prompts((5,)), GREEDY[0])[0].stats.rounds
    ops = {name.removeprefix("ssd::"): count for name, count in programs.ops[program].items() if name.startswith("ssd::")}
    assert ops.pop("embed") == forward_ops * rounds
    for name in ("rms_norm", "linear", "rope_store_kv", "paged_attention"):
        ops.pop(name)
    assert ops == {name: count * rounds for name, count in others.items()}
