"""Small valid calls of every op, as named arguments. opcheck runs them, and the error tests change one argument each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ops.backend import attention_head_size, inputs
from ops.cases import DTYPES, PagedKeys, generator, i32, ints, sampling, tree_parents, verify_state, verify_written
from ssd import ops

Arguments = dict[str, Any]


def forward_examples(dtype: torch.dtype) -> list[tuple[str, Arguments]]:
    g = generator(1)

    def activations(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    size, n_in = attention_head_size(16), inputs(5)
    weight = activations(6, n_in)
    examples: list[tuple[str, Arguments]] = [
        ("embed", {"ids": i32([3, 0, 2]), "table": activations(4, 6)}),
        ("rms_norm", {"x": activations(3, 6), "weight": activations(6), "eps": 1e-5}),
        (
            "move_kv",
            {
                "kv": activations(2, 2, 3, 4, 1, 16),
                "page_table": i32([[1, 2], [0, 0]]),
                "length": i32([2, 1]),
                "path": i32([[0, 3, 2, -1], [-1] * 4]),
            },
        ),
    ]
    for epilogue in ops.EPILOGUES:
        examples.append(("pack_weight", {"weight": weight, "epilogue": epilogue, "scale": None}))
        linear = {
            "x": activations(3, n_in),
            "weight": ops.pack_weight(weight, epilogue),
            "out_features": 6,
            "epilogue": epilogue,
        }
        linear["bias"] = activations(6)
        linear["residual"] = activations(3, 6) if epilogue == "add" else None
        examples += [("linear", linear), ("linear", linear | {"float32_out": True})]
    head = {"x": activations(3, n_in), "weight": ops.pack_weight(weight), "bias": activations(6), "out": torch.zeros(3, 6)}
    examples += [("logits", head), ("logits", head | {"bias": None})]
    weight, scale = torch.tensor([[3, -127, 5], [7, 0, 127]], dtype=torch.int8).repeat(1, 8), torch.tensor([0.5, 0.25])
    examples.append(("pack_weight", {"weight": weight, "epilogue": "none", "scale": scale}))
    packed = ops.pack_weight(weight, "none", scale)
    examples.append(("linear", {"x": activations(3, 24), "weight": packed, "out_features": 2, "epilogue": "none"}))
    rope = {
        "q": activations(3, 4, 16),
        "k": activations(3, 2, 16),
        "v": activations(3, 2, 16),
        "cos_sin": torch.randn(7, 16, generator=g),
        "positions": i32([0, 6, 3]),
        "kv_slots": i32([1, 9, 4]),
        "k_cache": activations(3, 4, 2, 16),
        "v_cache": activations(3, 4, 2, 16),
    }
    norms = {"q_norm": activations(16), "k_norm": activations(16), "eps": 1e-6}
    examples += [("rope_store_kv", rope | norms), ("rope_store_kv", rope)]
    for suffix in ([1, 0, 2], None):
        keys = PagedKeys([9, 5], 2, size, 4, dtype, seed=1)
        keys.k_cache[:], keys.v_cache[:] = activations(*keys.k_cache.shape), activations(*keys.v_cache.shape)
        examples.append(
            ("paged_attention", {"q": activations(3, 4, size), "scale": 0.25} | keys.see([0, 0, 1], [3, 9, 5], suffix))
        )
    return examples


def decision_examples() -> list[tuple[str, Arguments]]:
    g = generator(2)
    logits = torch.randn(3, 8, generator=g)
    names = ("temperature", "top_k", "top_p", "min_p")
    settings = dict(zip(names, sampling(3, 0.7, 5, 0.9, 0.01), strict=True))
    draw = {
        "logits": logits,
        "stats": ops.row_stats(logits, *sampling(3)),
        "seed": torch.arange(3),
        "position": i32([4, 5, 6]),
        "tokens": torch.zeros(3, 2, dtype=torch.int32),
        "m": 2,
    }
    q = {"q_logits": torch.zeros(3, 2, 1, 8), "q_stats": torch.zeros(3, 2, 1, ops.STATS), "parity": i32([1])}
    byte = torch.tensor([0, 1, 1], dtype=torch.uint8)
    fork = {
        "logits": torch.randn(3, 3, 8, generator=g),
        "spec_tokens": ints(0, 8, (3, 2), g),
        "spec_len": i32([0, 1, 2]),
        "table": i32([[[4, 0, 0], [2, 2, 0], [2, 1, 1]]] * 2),
        "hit": torch.tensor([0, 1, 1], dtype=torch.uint8),
        "guess": torch.zeros(3, 4, dtype=torch.int32),
        "guess_k": torch.zeros(3, 4, dtype=torch.int32),
    }
    rank = {
        "logits": fork["logits"],
        "outcome": ints(0, 3, (3, 2, 2), g),
        "parity": i32([1]),
        "spec_tokens": fork["spec_tokens"],
        "spec_len": i32([2, 1, 2]),
        "hit": byte,
        "done": torch.tensor([0, 0, 1], dtype=torch.uint8),
        "length": i32([4, 5, 6]),
        "draft_id_of": i32([0, 1, -1, 2, 3, -1, 4, 5]),
        "budget": 4,
        "draft_context": 6,
        "seen": torch.zeros(3, 4, dtype=torch.int32),
    }
    id_of = i32([0, 2, 3, 5, 7, 8, 9, 11])
    lookup = {
        "outcome": ints(0, 2, (3, 2, 2), g),
        "guess": ints(0, 2, (3, 4), g),
        "guess_k": ints(0, 2, (3, 4), g),
        "branch_tokens": ints(0, 8, (3, 4, 2), g),
        "length": i32([4, 5, 6]),
        "last_token": i32([1, 2, 3]),
        "max_length": i32([20, 20, 8]),
        "done": torch.tensor([0, 0, 1], dtype=torch.uint8),
        "nodes_within": i32([0, 2]),
        "draft_context": 6,
        "parity": i32([1]),
        **{name: torch.zeros(3, dtype=torch.int32) for name in ("draft_length", "draft_last_token")},
        "spec_tokens": torch.zeros(3, 2, dtype=torch.int32),
        "spec_len": torch.zeros(3, dtype=torch.int32),
        "hit": torch.zeros(3, dtype=torch.uint8),
        "missed": torch.zeros(3, dtype=torch.uint8),
        "q_address": torch.zeros(3, dtype=torch.int32),
        "bad": torch.zeros(3, dtype=torch.int32),
    }
    ngram = {
        "tokens": ints(0, 2, (3, 9), g),
        "length": i32([8, 5, 0]),
        "missed": torch.ones(3, dtype=torch.uint8),
        "spec_tokens": torch.zeros(3, 3, dtype=torch.int32),
        "spec_len": i32([3, 2, 3]),
        "q_address": i32([4, 4, 4]),
    }
    ends = {"spec_len": i32([2, 2, 2]), "bad": torch.zeros(3, dtype=torch.int32), "drafted": 1}
    return [
        ("row_stats", {"logits": logits, **settings, "saguaro_f": 2, "saguaro_c": 0.5}),
        ("sample", draw | {"id_of": id_of, "missed": byte, **q, **ends}),
        ("sample", draw),
        ("fork", fork | {"id_of": id_of}),
        ("fork", fork),
        ("verify", verify_example(tree=True)),
        ("verify", verify_example(tree=False)),
        ("rank_outcomes", rank),
        ("rank_outcomes", rank | {"draft_id_of": None}),
        ("cache_lookup", lookup),
        ("cache_lookup", lookup | {"nodes_within": None}),
        ("ngram_propose", ngram),
    ]


def row_examples() -> list[tuple[str, Arguments]]:
    g = generator(5)
    tree = {
        "tokens": ints(0, 99, (2, 9), g),
        "spec_tokens": ints(0, 99, (2, 4), g),
        "length": i32([6, 2]),
        "page_table": i32([[3, 1, 4], [2, 0, 5]]),
        "parent": i32(tree_parents((2, 1))),
        "page_size": 4,
        "first": 0,
        "count": 5,
        "depth": 2,
    }
    branches = {
        "guess": ints(0, 99, (2, 3), g),
        "guess_k": i32([[0, 1, 2], [0, 0, -1]]),
        "branch_tokens": ints(0, 99, (2, 3, 2), g),
        "length": i32([6, 2]),
        "scratch": ints(0, 99, (2, 3, 2), g),
        "step": 1,
    }
    return [("tree_rows", tree), ("tree_rows", tree | {"parent": None, "depth": 0, "first": -1}), ("branch_rows", branches)]


def verify_example(tree: bool) -> Arguments:
    g = generator(3)
    slots, nodes = 3, 4

    def stats(logits: torch.Tensor) -> torch.Tensor:
        rows = logits[..., 0].numel()
        return ops.row_stats(logits.flatten(0, -2), *sampling(rows)).unflatten(0, logits.shape[:-1])

    p_logits, q_logits = torch.randn(slots, nodes, 8, generator=g), torch.randn(slots, 2, 2, nodes - 1, 6, generator=g)
    state = verify_state(slots, 12, i32([2, 3, 4]), i32([1, 1, 1]), torch.arange(slots))
    state["eos"] = i32([7])
    return {
        "p_logits": p_logits,
        "p_stats": stats(p_logits),
        "q_logits": q_logits,
        "q_stats": stats(q_logits),
        "q_address": i32([0, -1, 1]),
        "draft_id_of": i32([0, 1, -1, 2, 3, -1, 4, 5]),
        "spec_tokens": ints(0, 8, (slots, nodes - 1), g),
        "spec_len": i32([3, 2, 0]),
        "parent": i32([tree_parents((3,))] * slots) if tree else None,
        **state,
        **verify_written(slots, nodes),
    }


@cache
def examples() -> list[tuple[str, Arguments]]:
    return [*forward_examples(DTYPES[0]), *row_examples(), *decision_examples()]


def example(op: str) -> Arguments:
    """The op's first example, which has the most arguments; with new tensors each time."""
    arguments = next(arguments for name, arguments in examples() if name == op)
    return {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
