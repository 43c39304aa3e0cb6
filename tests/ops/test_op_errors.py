"""Every op refuses arguments that it cannot read, with an error that names the wrong argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.backend import attention_head_size, chosen, only_on_the_cpu, ssd_ops
from ops.cases import DTYPES, i32, threads
from ops.examples import Arguments, example, examples

OTHER_DTYPE = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.int32: torch.int64,
    torch.int64: torch.int32,
    torch.uint8: torch.int32,
}


def other_dtype(x: Tensor) -> Tensor:
    return x.to(OTHER_DTYPE[x.dtype])


def one_dimension_more(x: Tensor) -> Tensor:
    return x[None]


def not_contiguous(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1)[..., 0]


SPOILERS = (other_dtype, one_dimension_more, not_contiguous)
STRIDED = {("move_kv", "length"), ("sample", "position"), ("sample", "tokens")}  # may be strided
SPOILT = [
    (op, name, spoil)
    for op in dict.fromkeys(op for op, _ in examples())
    for name, value in example(op).items()
    for spoil in SPOILERS
    if isinstance(value, Tensor) and not (spoil is not_contiguous and (value.numel() <= 1 or (op, name) in STRIDED))
]


def assert_refused(op: str, arguments: Arguments, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"\b{re.escape(name)}(?!\w)"):
        getattr(ssd_ops, op)(**arguments)


@pytest.mark.parametrize("op, name, spoil", SPOILT, ids=[f"{op}-{name}-{spoil.__name__}" for op, name, spoil in SPOILT])
def test_a_tensor_of_a_wrong_dtype_or_layout_is_refused_by_name(op: str, name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    arguments = example(op)
    assert_refused(op, arguments | {name: spoil(arguments[name])}, name)


# (op, the argument that the message names, the values passed instead)
MISFITS: list[tuple[str, str, Arguments]] = [
    ("pack_weight", "epilogue", {"epilogue": "gelu"}),
    ("pack_weight", "weight", {"weight": torch.zeros(5, 4), "epilogue": "silu_mul"}),
    ("pack_weight", "scale", {"scale": torch.ones(6)}),
    ("embed", "table", {"table": torch.zeros(0, 6)}),
    ("rms_norm", "weight", {"weight": torch.zeros(5)}),
    ("linear", "epilogue", {"epilogue": "gelu"}),
    ("linear", "epilogue", {"epilogue": "float32"}),
    ("linear", "weight", {"out_features": 17}),
    ("linear", "weight", {"x": torch.zeros(3, 49)}),
    ("linear", "bias", {"bias": torch.zeros(5)}),
    ("linear", "residual", {"epilogue": "add"}),
    ("linear", "residual", {"residual": torch.zeros(3, 6)}),
    ("linear", "out_features", {"out_features": 0}),
    ("rope_store_kv", "k", {"k": torch.zeros(2, 2, 16)}),
    ("rope_store_kv", "v", {"v": torch.zeros(3, 1, 16)}),
    ("rope_store_kv", "cos_sin", {"cos_sin": torch.zeros(7, 8)}),
    ("rope_store_kv", "k_norm", {"k_norm": None}),
    ("rope_store_kv", "v_cache", {"v_cache": torch.zeros(3, 2, 2, 16)}),
    ("paged_attention", "q", {"q": torch.zeros(3, 3, attention_head_size(16))}),
    ("paged_attention", "k_cache", {"q": torch.zeros(3, 4, 32)}),
    ("paged_attention", "suffix_len", {"suffix_len": None}),
    ("logits", "out", {"out": torch.zeros(2, 6)}),
    ("logits", "out", {"out": torch.zeros(3, 0)}),
    ("logits", "weight", {"out": torch.zeros(3, 17)}),
    ("move_kv", "length", {"length": i32([1])}),
    ("move_kv", "path", {"path": i32([[0, 1]])}),
    ("tree_rows", "spec_tokens", {"spec_tokens": i32([[1, 2, 3, 4]])}),
    ("tree_rows", "page_table", {"page_table": i32([[1, 2, 3]])}),
    ("tree_rows", "parent", {"parent": i32([-1, 0])}),
    ("tree_rows", "tokens", {"tokens": torch.zeros(2, 0, dtype=torch.int32)}),
    ("tree_rows", "page_size", {"page_size": 0}),
    ("tree_rows", "first", {"first": -2}),
    ("tree_rows", "count", {"count": 6}),
    ("tree_rows", "count", {"count": -1}),
    ("tree_rows", "depth", {"depth": 0}),
    ("tree_rows", "depth", {"parent": None}),
    ("branch_rows", "guess_k", {"guess_k": i32([[0, 1], [0, 0]])}),
    ("branch_rows", "scratch", {"scratch": torch.zeros(2, 3, 1, dtype=torch.int32)}),
    ("branch_rows", "step", {"step": 2}),
    ("branch_rows", "step", {"step": -1}),
    ("row_stats", "top_k", {"temperature": torch.ones(2)}),
    ("row_stats", "temperature", {"logits": torch.zeros(4, 8)}),
    ("row_stats", "saguaro_c", {"saguaro_c": 0.0}),
    ("row_stats", "saguaro_c", {"saguaro_c": 1.5}),
    ("row_stats", "saguaro_f", {"saguaro_f": -1}),
    ("row_stats", "logits", {"logits": torch.zeros(3, 0)}),
    ("sample", "stats", {"stats": torch.zeros(3, 7)}),
    ("sample", "id_of", {"id_of": i32([1, 2])}),
    ("sample", "m", {"m": 0}),
    ("sample", "seed", {"seed": torch.arange(2)}),
    ("sample", "tokens", {"m": 3}),
    ("sample", "q_stats", {"q_stats": None}),
    ("sample", "parity", {"parity": None}),
    ("sample", "q_logits", {"q_logits": torch.zeros(3, 2, 2, 8)}),
    ("sample", "missed", {"missed": torch.zeros(2, dtype=torch.uint8)}),
    ("sample", "bad", {"bad": None}),
    ("sample", "bad", {"bad": i32([0, 0])}),
    ("sample", "spec_len", {"spec_len": i32([2, 2])}),
    ("sample", "drafted", {"drafted": -1}),
    ("fork", "spec_tokens", {"spec_tokens": torch.zeros(3, 3, dtype=torch.int32)}),
    ("fork", "guess_k", {"guess_k": torch.zeros(3, 5, dtype=torch.int32)}),
    ("verify", "p_logits", {"p_logits": torch.zeros(3, 65, 8)}),
    ("verify", "q_stats", {"q_stats": None}),
    ("verify", "q_logits", {"q_logits": torch.zeros(3, 2, 2, 2, 6)}),
    ("verify", "report", {"report": torch.zeros(3, 6, dtype=torch.int32)}),
    ("verify", "report", {"report": torch.zeros(3, 71, dtype=torch.int32)}),
    ("verify", "path", {"path": torch.zeros(3, 3, dtype=torch.int32)}),
    ("rank_outcomes", "logits", {"logits": torch.zeros(3, 3, 0)}),
    ("rank_outcomes", "spec_tokens", {"spec_tokens": torch.zeros(3, 3, dtype=torch.int32)}),
    ("rank_outcomes", "budget", {"budget": -1}),
    ("rank_outcomes", "draft_context", {"draft_context": 0}),
    ("rank_outcomes", "seen", {"seen": torch.zeros(3, 3, dtype=torch.int32)}),
    ("cache_lookup", "nodes_within", {"nodes_within": torch.zeros(0, dtype=torch.int32)}),
    ("cache_lookup", "draft_context", {"draft_context": 2**31 - 2}),
    ("cache_lookup", "branch_tokens", {"branch_tokens": torch.zeros(3, 3, 2, dtype=torch.int32)}),
    ("cache_lookup", "spec_tokens", {"spec_tokens": torch.zeros(3, 3, dtype=torch.int32)}),
    ("cache_lookup", "bad", {"bad": i32([0, 0])}),
    ("ngram_propose", "length", {"length": i32([3, 3])}),
    ("ngram_propose", "spec_tokens", {"spec_tokens": torch.zeros(2, 3, dtype=torch.int32)}),
]


# Values in tensors, which the CPU reads before it starts.
WRONG_VALUES: list[tuple[str, str, Arguments]] = [
    ("rope_store_kv", "positions", {"positions": i32([0, 7, 3])}),
    ("rope_store_kv", "kv_slots", {"kv_slots": i32([1, 12, 4])}),
    ("rope_store_kv", "kv_slots", {"kv_slots": i32([1, -1, 4])}),
    ("paged_attention", "row_seq", {"row_seq": i32([0, 0, 2])}),
    ("paged_attention", "prefix_len", {"prefix_len": i32([2, -1, 3])}),
    ("paged_attention", "prefix_len", {"prefix_len": i32([2, 100, 3])}),
    ("paged_attention", "prefix_len", {"prefix_len": i32([2, 0, 3])}),  # without a suffix, so the row has no key
    ("paged_attention", "suffix_len", {"suffix_len": i32([1, 0, 4])}),
    ("paged_attention", "suffix_slots", {"suffix_slots": torch.full((3, 3), 1 << 20, dtype=torch.int32)}),
    ("move_kv", "page_table", {"page_table": i32([[1, 3], [0, 0]])}),
    ("move_kv", "page_table", {"length": i32([6, 1])}),
    ("move_kv", "length", {"length": i32([-9, 1])}),
    ("move_kv", "path", {"path": i32([[0, 4, -1, -1], [-1] * 4])}),
    ("tree_rows", "length", {"length": i32([9, 2])}),
    ("tree_rows", "length", {"length": i32([6, -1])}),
    ("tree_rows", "page_table", {"page_table": i32([[3, 1], [2, 0]])}),
    ("tree_rows", "parent", {"parent": i32([-1, 0, 0, 1, 4])}),
    ("tree_rows", "depth", {"depth": 1}),
    ("sample", "parity", {"parity": i32([2])}),
    ("fork", "spec_len", {"spec_len": i32([0, 1, 3])}),
    ("fork", "table", {"table": i32([[[3, 0, 0], [2, 1, 0], [2, 1, 0]]] * 2)}),
    ("fork", "table", {"table": i32([[[5, 0, 0], [3, 2, 0], [2, 1, 2]]] * 2)}),
    ("verify", "q_address", {"q_address": i32([0, -1, 2])}),
    ("verify", "spec_len", {"spec_len": i32([4, 2, 0])}),
    ("verify", "spec_tokens", {"spec_tokens": torch.full((3, 3), 8, dtype=torch.int32)}),
    ("verify", "parity", {"parity": i32([2])}),
    ("verify", "tokens", {"tokens": torch.zeros(3, 2, dtype=torch.int32)}),
    ("rank_outcomes", "parity", {"parity": i32([-1])}),
    ("rank_outcomes", "outcome", {"outcome": torch.full((3, 2, 2), 3)}),
    ("cache_lookup", "parity", {"parity": i32([-1])}),
    ("cache_lookup", "nodes_within", {"nodes_within": i32([0, 3])}),
    ("ngram_propose", "length", {"length": i32([9, 5, 0])}),
    ("ngram_propose", "length", {"length": i32([8, 5, -1])}),
]


def named(cases: list[tuple[str, str, Arguments]]) -> dict[str, Any]:
    return {"argvalues": cases, "ids": [f"{op}-{name}-{next(iter(changes))}" for op, name, changes in cases]}


def changed(op: str, changes: dict[str, Any]) -> Arguments:
    """The op's example with some arguments changed; they get the run dtype if the example's have it."""
    arguments = example(op)
    for name, value in changes.items():
        both = isinstance(value, Tensor) and isinstance(arguments[name], Tensor)
        arguments[name] = value.to(arguments[name].dtype) if both else value
    return arguments


@pytest.mark.parametrize("op, name, changes", **named(MISFITS))
def test_an_argument_that_does_not_fit_is_refused_by_name(op: str, name: str, changes: dict[str, Any]) -> None:
    assert_refused(op, changed(op, changes), name)


@only_on_the_cpu("the host does not read what is in a device's memory")
@pytest.mark.parametrize("op, name, changes", **named(WRONG_VALUES))
def test_a_value_out_of_range_is_refused_by_name(op: str, name: str, changes: dict[str, Any]) -> None:
    assert_refused(op, changed(op, changes), name)


# More values that the host cannot check; a kernel must not access other memory because of them.
LARGEST, LEAST = 2**31 - 1, -(2**31)
ABSURD_VALUES: list[tuple[str, str, Arguments]] = [
    ("fork", "table", {"table": torch.full((2, 3, 3), LARGEST)}),
    ("fork", "table", {"table": torch.full((2, 3, 3), LEAST)}),
    ("fork", "spec_len", {"spec_len": i32([LEAST, LARGEST, 3])}),
    ("fork", "spec_tokens", {"spec_tokens": torch.full((3, 2), LARGEST)}),
    ("verify", "spec_len", {"spec_len": i32([LEAST, LARGEST, 64])}),
    ("verify", "spec_tokens", {"spec_tokens": torch.full((3, 3), LARGEST)}),
    ("verify", "parent", {"parent": i32([[5, 3, 70, 2], [0, 0, LARGEST, LEAST], [-1, -7, 99, 1]])}),
    ("verify", "draft_id_of", {"draft_id_of": i32([-9, 99, 5, LARGEST, 6, LEAST, 0, 7])}),
    ("verify", "q_address", {"q_address": i32([-7, LARGEST, 2])}),
    ("verify", "length", {"length": i32([-5, LARGEST - 9, 100])}),
    ("verify", "max_length", {"max_length": i32([LEAST, LARGEST, 0])}),
    ("rank_outcomes", "outcome", {"outcome": torch.full((3, 2, 2), LARGEST)}),
    ("rank_outcomes", "outcome", {"outcome": i32([[[0, 0], [0, LARGEST]], [[0, 0], [1, LEAST]], [[0, 0], [LEAST, 1]]])}),
    ("rank_outcomes", "draft_id_of", {"draft_id_of": i32([-9, 99, 5, LARGEST, 6, LEAST, 0, 7])}),
    ("rank_outcomes", "spec_tokens", {"spec_tokens": torch.full((3, 2), LARGEST)}),
    ("rank_outcomes", "spec_len", {"spec_len": i32([LEAST, LARGEST, 3])}),
    ("tree_rows", "length", {"length": i32([LARGEST, LEAST])}),
    ("tree_rows", "parent", {"parent": i32([-1, 99, 1, LEAST, 3])}),
    ("move_kv", "length", {"length": i32([LARGEST - 9, LEAST])}),
    ("cache_lookup", "max_length", {"max_length": i32([LEAST, LARGEST, 0])}),
    ("ngram_propose", "length", {"length": i32([LARGEST, LEAST, 9])}),
]
DECISIONS = ("tree_rows", "sample", "fork", "verify", "rank_outcomes", "cache_lookup", "ngram_propose")


@pytest.mark.skipif(chosen.name == "cpu", reason="cpu: refuses them, as above")
@pytest.mark.parametrize("op, name, changes", **named([case for case in WRONG_VALUES if case[0] in DECISIONS] + ABSURD_VALUES))
def test_a_value_out_of_range_touches_no_memory_outside_the_ops_tensors(op: str, name: str, changes: dict[str, Any]) -> None:
    getattr(ssd_ops, op)(**changed(op, changes))


def test_int8_weights_need_their_scales() -> None:
    weight, scale = torch.zeros(6, 8, dtype=torch.int8), torch.ones(6)
    assert_refused("pack_weight", {"weight": weight, "epilogue": "none"}, "scale")
    assert_refused("pack_weight", {"weight": weight, "epilogue": "none", "scale": scale[:5]}, "scale")
    assert_refused("pack_weight", {"weight": weight.to(DTYPES[0]), "epilogue": "none", "scale": scale}, "scale")
    packed = ssd_ops.pack_weight(weight, "none", scale)
    x = torch.zeros(2, 40, dtype=DTYPES[0])
    assert_refused("linear", {"x": x, "weight": packed, "out_features": 6, "epilogue": "none"}, "weight")


# Limits of CUDA that the CPU does not have.
BEYOND_THE_CPU: list[tuple[str, str, Arguments]] = [
    ("embed", "table must have one of the dtypes", {"table": torch.zeros(4, 6)}),
    ("pack_weight", "weight must have a multiple of 8 inputs", {"weight": torch.zeros(6, 12)}),
    ("linear", "x must have a multiple of 8 inputs", {"x": torch.zeros(3, 12)}),
    ("linear", "x must start at a multiple of 16 bytes", {"x": torch.zeros(25)[1:].view(3, 8)}),
    ("linear", "weight must start at a multiple of 16 bytes", {"weight": torch.zeros(513)[1:].view(16, 32)}),
    ("rope_store_kv", "q must have a head size up to 256", {"head_size": 258}),
    ("paged_attention", "q must have a head size of 64, 80, 96, 128 or 256", {"head_size": 48}),
    ("paged_attention", "at most 16 times, not 34", {"q": torch.zeros(3, 34, 64)}),
    ("paged_attention", "scale must be positive", {"scale": -1.0}),
    ("paged_attention", "q's rows must lie a multiple of 8 elements apart", {"q": torch.zeros(3, 260)[:, :256].view(3, 4, 64)}),
    ("paged_attention", "q must start at a multiple of 16 bytes", {"q": torch.zeros(769)[1:].view(3, 4, 64)}),
    ("move_kv", "kv must have KV slots of a multiple of 16 bytes", {"kv": torch.zeros(2, 2, 3, 4, 1, 4)}),
]


@pytest.mark.skipif(chosen.name == "cpu", reason="cpu: can compute these")
@pytest.mark.parametrize("op, sentence, changes", **named(BEYOND_THE_CPU))
def test_arguments_beyond_a_cuda_kernels_limits_are_refused_by_name(op: str, sentence: str, changes: dict[str, Any]) -> None:
    arguments = example(op)
    dtype = torch.float32 if "dtypes" in sentence else chosen.dtypes[0]
    for name, value in changes.items():
        if name == "head_size":
            heads = {n: x for n, x in arguments.items() if (isinstance(x, Tensor) and x.dtype == dtype) or n == "cos_sin"}
            arguments |= {n: torch.zeros(*x.shape[:-1], value, dtype=x.dtype) for n, x in heads.items() if x is not None}
        elif not isinstance(value, Tensor):
            arguments[name] = value
        else:  # rounding a view makes a new tensor, with an alignment of its own
            shape, stride, offset = value.shape, value.stride(), value.storage_offset()
            whole = torch.zeros(value.untyped_storage().nbytes() // 4, dtype=dtype)
            arguments[name] = whole.as_strided(shape, stride, offset)
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        getattr(ssd_ops, op)(**arguments)


@pytest.mark.skipif(chosen.name == "cpu", reason="cpu: has no counters")
def test_more_rows_than_the_kernel_has_counters_for_are_refused() -> None:
    rows = 65537
    arguments = {"logits": torch.zeros(rows, 1), "temperature": torch.ones(rows), "top_k": torch.zeros(rows, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match="at most 65536 results .* not 65537; pass fewer rows at a time"):
        ssd_ops.row_stats(**arguments, top_p=torch.ones(rows), min_p=torch.zeros(rows))


@only_on_the_cpu("has no threads that could find a mistake each")
def test_an_op_still_works_after_errors_on_several_threads() -> None:
    """Any thread may find an error in a slot. The error must reach the caller, and the next call must work."""
    arguments = example("fork")
    by_slot = ("logits", "spec_tokens", "spec_len", "hit", "guess", "guess_k")
    many = {name: arguments[name].repeat_interleave(50, 0) for name in by_slot}

    def guesses() -> list[Tensor]:
        written = {name: torch.zeros_like(many[name]) for name in ("guess", "guess_k")}
        ssd_ops.fork(**(arguments | many | written))
        return list(written.values())

    with threads(2):
        expected = guesses()
        for slot in (0, 77, 149):
            spoilt = many["spec_len"].clone()
            spoilt[slot] = 9
            assert_refused("fork", arguments | many | {"spec_len": spoilt}, f"spec_len[{slot}]")
            assert all(torch.equal(a, b) for a, b in zip(guesses(), expected, strict=True))
