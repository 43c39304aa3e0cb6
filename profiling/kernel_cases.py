"""The cases that profiling/kernels.py times: each kernel at the shapes of Llama-3.1-8B and Qwen3-0.6B.

Each call has its own random weights, its own random keys in scattered pages, and its own logits of 128,256 ids, so that none of
them is in the cache. Activations stay in the cache, as they do in a pass. A case is made just before it is timed, and its
memory is free for the next case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from graph_timing import Call, rotation
from torch import Tensor

from ssd import ops
from ssd.models.quantise import quantise

BFLOAT16 = torch.bfloat16
PAGE_SIZE = 16
VOCABULARY = 128_256
LOOKAHEAD, BUDGET = 7, 24

# Model, then name: (outputs, inputs, epilogue).
LINEARS: dict[str, dict[str, tuple[int, int, str]]] = {
    "Llama-3.1-8B": {
        "qkv": (6144, 4096, "none"),
        "attention_out": (4096, 4096, "add"),
        "gate_up": (28672, 4096, "silu_mul"),
        "down": (4096, 14336, "add"),
        "head": (128256, 4096, "none"),
    },
    "Qwen3-0.6B": {
        "qkv": (4096, 1024, "none"),
        "attention_out": (1024, 2048, "add"),
        "gate_up": (6144, 1024, "silu_mul"),
        "down": (1024, 3072, "add"),
        "head": (151936, 1024, "none"),
    },
}
LINEAR_ROWS = {  # by model and format of its weights
    ("Llama-3.1-8B", "bf16"): (1, 2, 4, 8, 16, 32, 64),
    ("Llama-3.1-8B", "int8"): (1, 8, 24, 64),
    ("Qwen3-0.6B", "bf16"): (1, 8, 24),
}

# (query heads, K/V heads, head size, sequences, keys each, rows each)
ATTENTIONS = [
    (32, 8, 128, 1, 512, 1),
    (32, 8, 128, 1, 4096, 1),
    (32, 8, 128, 1, 16384, 1),
    (32, 8, 128, 8, 16384, 1),
    (32, 8, 128, 8, 16384, 8),
    (32, 8, 128, 1, 512, 24),
    (16, 8, 128, 1, 512, 1),
    (16, 8, 128, 1, 512, 24),
    (9, 3, 64, 1, 512, 1),
]


@dataclass
class Case:
    kernel: str
    name: str  # of the case, without its kernel
    shape: dict[str, Any]
    calls: list[Call]
    bytes: int  # bytes that a call must read; they give its floor
    peers: dict[str, list[Call]] = field(default_factory=dict)
    reset: Call = lambda: None  # undoes the calls' writes, outside the timing


def random(*shape: int, dtype: torch.dtype = BFLOAT16, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype).mul_(scale)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def i32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def named(model: str, weights: str) -> str:
    """A model in a format, for the name of a case."""
    return model if weights == "bf16" else f"{model} in {weights}"


def linears() -> Iterator[Case]:
    for (model, weights), rows_of_cases in LINEAR_ROWS.items():
        for part, (n_out, n_in, epilogue) in LINEARS[model].items():
            size = n_out * n_in * (2 if weights == "bf16" else 1)
            plain = [random(n_out, n_in, scale=n_in**-0.5) for _ in range(rotation(size))]
            formatted = [(weight, None) if weights == "bf16" else quantise(weight) for weight in plain]
            packed = [ops.pack_weight(weight, epilogue, scale) for weight, scale in formatted]
            del formatted
            columns, logits = n_out // 2 if epilogue == "silu_mul" else n_out, part == "head"
            for rows in rows_of_cases:
                x, residual = random(rows, n_in), random(rows, columns) if epilogue == "add" else None
                repeats = max(1, 4 // len(packed))
                yield Case(
                    "linear",
                    f"{named(model, weights)} {part}, {count(rows, 'row')}",
                    {
                        "model": model,
                        "weights": weights,
                        "part": part,
                        "out": n_out,
                        "in": n_in,
                        "epilogue": epilogue,
                        "rows": rows,
                    },
                    [partial(ops.linear, x, weight, n_out, epilogue, None, residual, logits) for weight in packed] * repeats,
                    size,
                    {"cuBLAS, without the epilogue": [partial(F.linear, x, weight) for weight in plain] * repeats},
                )
            del plain, packed


def attentions() -> Iterator[Case]:
    for heads, kv_heads, dim, sequences, keys, rows in ATTENTIONS:
        size = sequences * keys * kv_heads * dim * 2 * 2
        times = rotation(size, least_calls=2)
        pages_each = -(-keys // PAGE_SIZE)
        pages = times * sequences * pages_each
        k_cache, v_cache = (random(pages, PAGE_SIZE, kv_heads, dim) for _ in range(2))
        table = torch.randperm(pages, device="cuda").int().view(times, sequences, pages_each)
        q = random(sequences * rows, heads, dim)
        row_seq = torch.arange(sequences, device="cuda", dtype=torch.int32).repeat_interleave(rows)
        prefix_len = torch.full((sequences * rows,), keys, device="cuda", dtype=torch.int32)
        calls = [
            partial(ops.paged_attention, q, k_cache, v_cache, pages_of, row_seq, prefix_len, dim**-0.5) for pages_of in table
        ]
        peers = {"SDPA, keys contiguous": sdpa(k_cache, v_cache, q, times, sequences, keys)}
        if rows == 1 and (flashinfer := flashinfer_decode(k_cache, v_cache, q, table, keys)):
            peers["FlashInfer"] = flashinfer
        yield Case(
            "paged_attention",
            f"{heads}/{kv_heads} heads of {dim}, {sequences} × {keys} keys, {count(rows, 'row')} each",
            {"heads": heads, "kv_heads": kv_heads, "dim": dim, "sequences": sequences, "keys": keys, "rows": rows},
            calls,
            size,
            peers,
        )


def sdpa(k_cache: Tensor, v_cache: Tensor, q: Tensor, times: int, sequences: int, keys: int) -> list[Call]:
    """Over the same memory, read as if every sequence's keys lay together."""
    k, v = (
        cache.flatten(0, 1)[: times * sequences * keys].unflatten(0, (times, sequences, keys)).transpose(2, 3)
        for cache in (k_cache, v_cache)
    )  # [times, sequences, kv heads, keys, dim]
    rows = q.unflatten(0, (sequences, -1)).transpose(1, 2)
    return [partial(F.scaled_dot_product_attention, rows, k[i], v[i], enable_gqa=True) for i in range(times)]


def flashinfer_decode(k_cache: Tensor, v_cache: Tensor, q: Tensor, table: Tensor, keys: int) -> list[Call] | None:
    try:
        import flashinfer
    except ImportError:
        return None
    (times, sequences, pages), (_, heads, dim) = table.shape, q.shape
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    calls: list[Call] = []
    for i in range(times):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
        ends = torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * pages
        last = torch.full((sequences,), (keys - 1) % PAGE_SIZE + 1, device="cuda", dtype=torch.int32)
        wrapper.plan(
            ends, table[i].flatten(), last, heads, k_cache.shape[2], dim, PAGE_SIZE, q_data_type=BFLOAT16, kv_data_type=BFLOAT16
        )
        calls.append(partial(wrapper.run, q, (k_cache, v_cache)))
    return calls


# The decisions ----------------------------------------------------------------------------------------------------------------

SETTINGS = {"temperature 1": (1.0, 0, 1.0, 0.0), "greedy": (0.0, 0, 1.0, 0.0), "top-k 40, top-p 0.9": (0.8, 40, 0.9, 0.0)}


def settings_of(rows: int, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    temperature, top_k, top_p, min_p = SETTINGS[name]
    f32 = [torch.full((rows,), value, device="cuda") for value in (temperature, top_p, min_p)]
    return f32[0], torch.full((rows,), top_k, device="cuda", dtype=torch.int32), f32[1], f32[2]


def logits_of(*shape: int) -> Tensor:
    return random(*shape, VOCABULARY, dtype=torch.float32, scale=3.0)


def draws() -> Iterator[Case]:
    for rows in (1, 8, 24):
        size = rows * VOCABULARY * 4
        many = [logits_of(rows) for _ in range(rotation(size, least_calls=8))]
        seed, position = torch.arange(rows, device="cuda"), torch.arange(rows, device="cuda", dtype=torch.int32)
        drawn = torch.zeros(rows, 1, device="cuda", dtype=torch.int32)
        for name in SETTINGS:
            sampling = settings_of(rows, name)
            parameters = {"rows": rows, "vocabulary": VOCABULARY, "settings": name}
            peer: dict[str, list[Call]] = {"torch.logsumexp": [partial(torch.logsumexp, z, 1) for z in many]}
            if name == "greedy":
                peer = {"torch.argmax": [partial(torch.argmax, z, 1) for z in many]}
            elif name != "temperature 1":
                peer = {"torch.sort": [partial(torch.sort, z, 1, descending=True) for z in many]}
            yield Case(
                "row_stats",
                f"{count(rows, 'row')}, {name}",
                parameters,
                [partial(ops.row_stats, z, *sampling) for z in many],
                size,
                peer,
            )
            stats = [ops.row_stats(z, *sampling) for z in many]
            yield Case(
                "sample",
                f"{count(rows, 'row')}, {name}",
                parameters,
                [partial(ops.sample, z, its_stats, seed, position, drawn) for z, its_stats in zip(many, stats, strict=True)],
                size,
                {"torch softmax, exponential_, argmax": [partial(torch_sample, z) for z in many]},
            )


def torch_sample(logits: Tensor) -> Tensor:
    p = torch.softmax(logits, 1)
    return p.div_(torch.empty_like(p).exponential_()).argmax(1)


def speculation() -> Iterator[Case]:
    nodes = LOOKAHEAD + 1
    for slots in (1, 8):
        size = slots * nodes * VOCABULARY * 4
        times = rotation(size, least_calls=8)
        p = [logits_of(slots, nodes) for _ in range(times)]
        table = torch.zeros(2, nodes, nodes, dtype=torch.int32)
        for spec_len in range(nodes):
            for guess in range(BUDGET):
                table[:, spec_len, guess % (spec_len + 1)] += 1
        table = table.cuda()
        spec_tokens = torch.randint(VOCABULARY, (slots, LOOKAHEAD), device="cuda", dtype=torch.int32)
        spec_len = torch.full((slots,), LOOKAHEAD, device="cuda", dtype=torch.int32)
        hit = torch.ones(slots, device="cuda", dtype=torch.uint8)
        guess, guess_k = (torch.zeros(slots, BUDGET, device="cuda", dtype=torch.int32) for _ in range(2))
        parameters = {"slots": slots, "lookahead": LOOKAHEAD, "budget": BUDGET, "vocabulary": VOCABULARY}
        yield Case(
            "fork",
            f"{count(slots, 'slot')}, K = {LOOKAHEAD}, B = {BUDGET}",
            parameters,
            [partial(ops.fork, z, spec_tokens, spec_len, table, hit, guess, guess_k) for z in p],
            size,
            {"torch.topk": [partial(torch.topk, z, BUDGET // nodes + 1, dim=2) for z in p]},
        )
        outcome, parity = i32([[[1, 7], [1, 7]]] * slots), i32([0])
        seen, done = torch.zeros(slots, 4, device="cuda", dtype=torch.int32), torch.zeros_like(hit)
        length, limits = torch.zeros(slots, device="cuda", dtype=torch.int32), (None, BUDGET, ops.NO_LIMIT)
        yield Case(
            "rank_outcomes",
            f"{count(slots, 'slot')}, K = {LOOKAHEAD}",
            parameters,
            [
                partial(ops.rank_outcomes, z, outcome, parity, spec_tokens, spec_len, hit, done, length, *limits, seen)
                for z in p
            ],
            slots * VOCABULARY * 4,
        )
        for name in ("temperature 1", "greedy"):
            yield verify_case(p, slots, name, parameters)
    for slots in (1, 8):
        yield lookup_case(slots)
        yield ngram_case(slots)


def verify_case(p: list[Tensor], slots: int, name: str, parameters: dict[str, Any]) -> Case:
    """q resembles p, and the proposals are drawn from it. Each call has a state of its own, put back before every replay."""
    nodes = LOOKAHEAD + 1
    sampling = settings_of(slots * nodes, name)
    seeds = torch.arange(slots, device="cuda")
    calls: list[Call] = []
    states: list[tuple[Tensor, Tensor]] = []
    for i in range(rotation(slots * VOCABULARY * 8, least_calls=8)):
        p_logits = p[i % len(p)]
        p_stats = ops.row_stats(p_logits.flatten(0, 1), *sampling).unflatten(0, (slots, nodes))
        q_logits = torch.zeros(slots, 2, 1, LOOKAHEAD, VOCABULARY, device="cuda")
        q_logits[:, 0, 0] = p_logits[:, :-1] + 0.5 * torch.randn_like(p_logits[:, :-1])
        drawn = q_logits[:, 0, 0].flatten(0, 1)
        drawn_stats = ops.row_stats(drawn, *settings_of(slots * LOOKAHEAD, name))
        q_stats = torch.zeros(slots, 2, 1, LOOKAHEAD, ops.STATS, device="cuda")
        q_stats[:, 0, 0] = drawn_stats.unflatten(0, (slots, LOOKAHEAD))
        positions = torch.arange(LOOKAHEAD, device="cuda", dtype=torch.int32).repeat(slots)
        spec = torch.zeros(slots, LOOKAHEAD, device="cuda", dtype=torch.int32)
        ops.sample(drawn, drawn_stats, seeds + 1000 * i, positions, spec)
        state = {
            "parity": i32([0]),
            "seed": seeds + 1000 * i,
            "eos": i32([VOCABULARY - 1]),
            "ignore_eos": torch.ones(slots, device="cuda", dtype=torch.uint8),
            "max_length": i32([4000] * slots),
            "tokens": torch.zeros(slots, 4096, device="cuda", dtype=torch.int32),
            "length": i32([0] * slots),
            "last_token": i32([0] * slots),
            "done": torch.zeros(slots, device="cuda", dtype=torch.uint8),
            "outcome": torch.zeros(slots, 2, 2, device="cuda", dtype=torch.int32),
            "path": torch.zeros(slots, nodes, device="cuda", dtype=torch.int32),
            "report": torch.zeros(slots, 6 + nodes, device="cuda", dtype=torch.int32),
        }
        states += [(value, value.clone()) for value in state.values()]
        hit = torch.zeros(slots, device="cuda", dtype=torch.uint8)
        arguments = (
            p_logits,
            p_stats,
            q_logits,
            q_stats,
            i32([0] * slots),
            None,
            spec,
            i32([LOOKAHEAD] * slots),
            hit,
            i32([0] * slots),
            None,
        )
        calls.append(partial(ops.verify, *arguments, **state))

    def reset() -> None:
        for value, before in states:
            value.copy_(before)

    # The decision needs p and q at each proposal, and one row of each for the residual.
    return Case(
        "verify",
        f"{count(slots, 'slot')}, K = {LOOKAHEAD}, {name}",
        parameters | {"settings": name},
        calls,
        slots * VOCABULARY * 8,
        {"torch softmax of p and q, clamp, argmax": [partial(torch_verify, z) for z in p]},
        reset,
    )


def torch_verify(p_logits: Tensor) -> Tensor:
    p = torch.softmax(p_logits, 2)
    q = torch.softmax(p_logits.flip(1), 2)
    return (p - q).clamp_min_(0).argmax(2)


def lookup_case(slots: int) -> Case:
    def int_table(*shape: int) -> Tensor:
        return torch.randint(3, shape, device="cuda", dtype=torch.int32)

    guess, guess_k, branches = int_table(slots, BUDGET), int_table(slots, BUDGET), int_table(slots, BUDGET, LOOKAHEAD)
    state = [int_table(slots), int_table(slots), i32([4000] * slots), torch.zeros(slots, device="cuda", dtype=torch.uint8)]
    written = [i32([0]), int_table(slots), int_table(slots), int_table(slots, LOOKAHEAD), int_table(slots)]
    written += [*(torch.zeros(slots, device="cuda", dtype=torch.uint8) for _ in range(2)), int_table(slots), int_table(slots)]
    arguments = (int_table(slots, 2, 2), guess, guess_k, branches, *state, None, ops.NO_LIMIT, *written)
    parameters = {"slots": slots, "lookahead": LOOKAHEAD, "budget": BUDGET}
    return Case(
        "cache_lookup", f"{count(slots, 'slot')}", parameters, [partial(ops.cache_lookup, *arguments)] * 64, branches.nbytes
    )


def ngram_case(slots: int, capacity: int = 4096) -> Case:
    tokens = torch.randint(50, (slots, capacity), device="cuda", dtype=torch.int32)
    length = i32([capacity - 10] * slots)
    parameters = {"slots": slots, "tokens": capacity, "lookahead": LOOKAHEAD}
    missed = torch.ones(slots, device="cuda", dtype=torch.uint8)
    written = [torch.zeros(slots, LOOKAHEAD, device="cuda", dtype=torch.int32), i32([LOOKAHEAD] * slots), i32([0] * slots)]
    calls: list[Call] = [partial(ops.ngram_propose, tokens, length, missed, *written)] * 64
    return Case("ngram_propose", f"{count(slots, 'slot')} of {capacity}", parameters, calls, tokens.nbytes)


# The rest of a pass -----------------------------------------------------------------------------------------------------------


def small_kernels(width: int = 4096, heads: int = 32, kv_heads: int = 8, dim: int = 128) -> Iterator[Case]:
    table, weight = random(VOCABULARY, width), random(width)
    layers, moves = 32, 8
    kv = random(layers, 2, 64, PAGE_SIZE, kv_heads, dim)
    cos_sin = torch.randn(4096, dim, device="cuda")
    for rows in (1, 24):
        parameters = {"rows": rows, "width": width}
        x = random(rows, width)
        ids = torch.randint(VOCABULARY, (rows,), device="cuda", dtype=torch.int32)
        wide, name = ids.long(), f"{count(rows, 'row')} of {width}"

        def many(op: Call, *arguments: Any) -> list[Call]:
            return [partial(op, *arguments)] * 64

        yield Case(
            "embed",
            name,
            parameters,
            many(ops.embed, ids, table),
            2 * x.nbytes,
            {"torch embedding": many(F.embedding, wide, table)},
        )
        yield Case(
            "rms_norm",
            name,
            parameters,
            many(ops.rms_norm, x, weight, 1e-5),
            2 * x.nbytes,
            {"torch rms_norm": many(F.rms_norm, x, (width,), weight, 1e-5)},
        )
        q, k, v = (random(rows, n, dim) for n in (heads, kv_heads, kv_heads))
        positions = torch.arange(rows, device="cuda", dtype=torch.int32)
        yield Case(
            "rope_store_kv",
            f"{count(rows, 'row')}, {heads}/{kv_heads} heads of {dim}",
            parameters,
            many(ops.rope_store_kv, q, k, v, cos_sin, positions, positions, kv[0, 0], kv[0, 1]),
            2 * (q.nbytes + k.nbytes + v.nbytes),
        )
    for slots in (1, 8):
        tokens, spec_tokens = (torch.zeros(slots, n, device="cuda", dtype=torch.int32) for n in (4096, LOOKAHEAD))
        lengths, page_table = i32([4000] * slots), torch.ones(slots, 256, device="cuda", dtype=torch.int32)
        yield Case(
            "tree_rows",
            f"{count(slots, 'slot')}, K = {LOOKAHEAD}",
            {"slots": slots, "lookahead": LOOKAHEAD},
            [partial(ops.tree_rows, tokens, spec_tokens, lengths, page_table, None, PAGE_SIZE, 0, LOOKAHEAD + 1)] * 64,
            slots * (LOOKAHEAD + 1) * 6 * 4,
        )
    pages, length, path = i32([range(16)]), i32([0]), i32([[0, *range(100, 100 + moves)]])
    yield Case(
        "move_kv",
        f"{moves} KV slots of {layers} layers",
        {"moves": moves, "layers": layers},
        [partial(ops.move_kv, kv, pages, length, path)] * 64,
        2 * moves * layers * 2 * kv_heads * dim * 2,
    )
