"""The documented Python functions for `torch.ops.ssd`: shapes, dtypes, errors and the source of each op.

The schemas are in csrc/ops.cpp. Every op has a CPU implementation in csrc/cpu; the CUDA kernels are in csrc/cuda and are bound
in csrc/cuda_ops. Every op checks shape, dtype, device and contiguity, and raises RuntimeError that names the wrong argument.

Letters: R rows, S sequence slots, K lookahead, B budget, V the target's vocabulary, Vd the draft's, D head size, T rows per
sequence (K + 1 for a chain, the number of nodes for a tree). A trailing ! marks a tensor that the op writes. Tensors are
contiguous unless stated otherwise. Activations have the run dtype: float32 or bfloat16 on the CPU, bfloat16 on CUDA.

Row invariance: a row's result depends neither on the other rows of the call nor on the number of threads. Two guarantees rest
on it: greedy AR, SD and SSD give the same tokens, and sampled SSD gives the same tokens as sampled SD.
"""

from __future__ import annotations

import torch
from torch import Tensor

import ssd.native  # noqa: F401  (registers torch.ops.ssd)

STATS = 8
"""Columns of `row_stats`: max, log-sum, cut value, cut id, top value, top id, scale, log C (csrc/common/distribution.h)."""

FAILED = 2
"""`done` of a slot that `verify` ended because the target's row for its next token is bad, see `row_stats`."""

EPILOGUES = ("none", "add", "silu_mul")

_ssd = torch.ops.ssd


# The forward pass ------------------------------------------------------------------------------------------------------------


def pack_weight(weight: Tensor, epilogue: str = "none", scale: Tensor | None = None) -> Tensor:
    """Pack a weight into the layout that `linear` reads, once, at load.

    weight: [out, in], run dtype; or int8 with scale, [out] float32 (CPU only; the real weight is weight · scale). For the
    epilogue "silu_mul" the gate's rows come first, then the up projection's, so out is even.
    Returns an opaque tensor; its layout depends on the device and may be padded.
    Raises RuntimeError for another dtype, a scale without int8 or int8 without a scale, an unknown epilogue, or an odd out for
    "silu_mul"; on CUDA also if in is not a multiple of 8.
    """
    return _ssd.pack_weight.default(weight, epilogue, scale)


def embed(ids: Tensor, table: Tensor) -> Tensor:
    """Look up rows of the embedding table.

    ids: [R] int32; an id outside [0, vocabulary) reads row 0, so that masked rows of a fixed-shape round need no special case.
    table: [vocabulary, d], run dtype. Returns [R, d].
    """
    return _ssd.embed.default(ids, table)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich, 2019), computed in float32: x / sqrt(mean(x²) + eps) · weight. x: [R, d]; weight: [d]."""
    return _ssd.rms_norm.default(x, weight, eps)


def linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    epilogue: str = "none",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    float32_out: bool = False,
) -> Tensor:
    """x · weightᵀ, accumulated in float32. Up to 256 rows share one read of the weights.

    Beside int8 weights x is rounded to int8 too, each 32 inputs of a row with one scale (their largest magnitude / 127, as in
    GGUF's Q8_0). Their products are summed exactly, as integers.
    x: [R, in], run dtype. weight: from `pack_weight` with the same epilogue. out_features: rows of the weight before packing.
    bias: [out_features]. residual: [R, out_features], for "add" only.
    Epilogues, all computed in float32 before the result is rounded once: "none"; "add" adds residual; "silu_mul" returns
    silu(gate) · up, [R, out_features / 2]. float32_out: leave the result in float32, for logits.
    Returns [R, out_features], run dtype or float32, except as the epilogue says.
    """
    return _ssd.linear.default(x, weight, out_features, epilogue, bias, residual, float32_out)


def rope_store_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    kv_slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate q in place; write rotated k, and v, to the paged cache (rotary embedding, Su et al. 2021; halves, not pairs).

    q!: [R, Hq, D]; k, v: [R, Hkv, D]; a row may be a slice of a wider row (only the last two dimensions must be contiguous).
    cos_sin: [positions, D] float32, the cos of the D/2 angles and then their sin. positions, kv_slots: [R] int32.
    q_norm, k_norm: [D], weights of an RMSNorm over each head before the rotation (Qwen3), with eps; give both or neither.
    k_cache!, v_cache!: [pages, page_size, Hkv, D], run dtype.
    """
    _ssd.rope_store_kv.default(q, k, v, cos_sin, positions, kv_slots, k_cache, v_cache, q_norm, k_norm, eps)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    row_seq: Tensor,
    prefix_len: Tensor,
    scale: float,
    suffix_slots: Tensor | None = None,
    suffix_len: Tensor | None = None,
) -> Tensor:
    """Attention of each row over a paged prefix of its sequence, followed by an explicit suffix of KV slots.

    This one op serves prefill, decode, chain and tree verification and the draft's branches, without masks.
    q: [R, Hq, D] (rows may be strided); k_cache, v_cache: [pages, page_size, Hkv, D]; Hq a multiple of Hkv,
    at most 32 times (CUDA: 16); D a multiple of 16 up to 256 (CUDA: 64, 80, 96, 128 or 256). scale: above 0 on CUDA.
    page_table: [S, P] int32; row_seq: [R] int32 in [0, S), the row of page_table; prefix_len: [R] int32 ≥ 0.
    suffix_slots: [R, W] int32 with suffix_len [R] int32; row r uses its first suffix_len[r] slots; give both or neither. A row
    must see at least one key. Key j of a row is in its pages for j < prefix_len, else in suffix_slots[j − prefix_len]. Moving a
    key from one to the other changes no bit of the result. Softmax in float32. Returns [R, Hq, D], run dtype.
    """
    return _ssd.paged_attention.default(q, k_cache, v_cache, page_table, row_seq, prefix_len, scale, suffix_slots, suffix_len)


def move_kv(kv: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy the K/V of slots to other slots, in all layers. It makes the K/V of an accepted tree path contiguous.

    kv!: [layers, 2, pages, page_size, Hkv, D]; src, dst: [N] int32 KV slots. Moves happen in the order i = 0..N−1; a move with
    a negative src or dst is skipped.
    """
    _ssd.move_kv.default(kv, src, dst)


# Distributions and sampling --------------------------------------------------------------------------------------------------


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    saguaro_f: int = 0,
    saguaro_c: float = 1.0,
) -> Tensor:
    """The processed distribution of each row as eight numbers; with them any probability costs one exp.

    logits: [R, V] float32. temperature, top_p, min_p: [R] float32; top_k: [R] int32. Processing, in this order, with ties to
    the lower id: divide by temperature (0: a point mass on the argmax); keep the top_k largest (0: all); keep the shortest
    prefix whose probabilities sum to at least top_p (1: all); keep those of at least min_p times the largest (0: all). Then,
    for a draft, multiply the top saguaro_f entries by saguaro_c in (0, 1] and renormalise (arXiv 2603.03251, Definition 14);
    saguaro_c = 1 changes nothing.
    A logit of −inf is masked: it has no probability. A row is bad if it has NaN or +inf, or if no logit is finite: then it has
    no distribution, and every probability is 0.
    Returns [R, STATS] float32; NaN for a bad row.
    """
    return _ssd.row_stats.default(logits, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c)


def sample(
    logits: Tensor,
    stats: Tensor,
    seed: Tensor,
    position: Tensor,
    m: int = 1,
    id_of: Tensor | None = None,
    spec_len: Tensor | None = None,
    bad: Tensor | None = None,
    drafted: int = 0,
) -> Tensor:
    """Draw m tokens per row without replacement, by an exponential race over counter-based noise (Gumbel top-m).

    logits: [R, V] float32; stats: their `row_stats`; seed: [R] int64; position: [R] int32, the position of the drawn token.
    id_of: [V] int32, the target id of each draft column, ascending. A greedy row returns its m largest by value, ties to the
    lower id.
    spec_len!, bad!: [S] int32, for the drafts of S speculations, each with R / S adjacent rows; give both or neither. drafted:
    the number of tokens in each of them before these. A bad row (`row_stats`) whose slot has spec_len > drafted sets bad to 1.
    If it is the slot's only row, the speculation ends there: it sets spec_len to `drafted`.
    Returns [R, m] int32 target ids in the order drawn, then −1 if the distribution has fewer than m entries. It has at least
    one, except for a bad row, which has none.
    """
    return _ssd.sample.default(logits, stats, seed, position, m, id_of, spec_len, bad, drafted)


# The speculation cache and its verification -----------------------------------------------------------------------------------


def fork(
    logits: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    table: Tensor,
    hit: Tensor,
    budget: int,
    id_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Guess the outcomes of the verification in flight: for each accepted count k, the F_k likeliest next tokens.

    logits: [S, K+1, Vd] float32, the draft's logits after the last committed token and after each speculated one. spec_tokens:
    [S, K] int32; spec_len: [S] int32. table: [2, K+1, K+1] int32, F_k indexed by (hit, spec_len, k); each row sums to budget
    and is 0 beyond spec_len. hit: [S] uint8. For k < spec_len the drafted token is excluded: it would have been accepted. Ties
    to the lower id.
    Returns guess [S, B] int32, target ids ordered by k and then by rank, and guess_k [S, B] int32. Masked columns are not
    guessed. If there are fewer columns than guesses, the unused entries have guess 0 and guess_k −1; those of a bad row
    (`row_stats`) have guess_k −2. arXiv 2603.03251, section 4.
    """
    return _ssd.fork.default(logits, spec_tokens, spec_len, table, hit, budget, id_of)


def verify(
    p_logits: Tensor,
    p_stats: Tensor,
    q_logits: Tensor | None,
    q_stats: Tensor | None,
    q_address: Tensor,
    draft_id_of: Tensor | None,
    spec_tokens: Tensor,
    spec_len: Tensor,
    parent: Tensor | None,
    parity: Tensor,
    seed: Tensor,
    eos: Tensor,
    ignore_eos: Tensor,
    max_length: Tensor,
    tokens: Tensor,
    length: Tensor,
    last_token: Tensor,
    done: Tensor,
    outcome: Tensor,
) -> Tensor:
    """Verify a chain or tree exactly, and commit the outcome. Algorithm: Leviathan et al. 2023; for trees, sampling without
    replacement as in SpecInfer (Miao et al. 2024): each rejected sibling is removed from q, and the next sibling is tested
    against the residual.

    p_logits: [S, T, V] float32, row i after node i; p_stats: [S, T, STATS]. spec_tokens: [S, T−1] int32, node i in column i−1,
    −1 for a missing node; spec_len: [S] int32, the number of nodes. parent: [S, T] int32 with parent[0] = −1, parent[i] < i;
    None for a chain. T ≤ 64.
    q_logits: [S, 2, A, Q, Vd] float32 and q_stats: [S, 2, A, Q, STATS], Q ≥ T − 1. Entry [s, parity, q_address, i] is the
    distribution that node i's children were drawn from. q_address: [S] int32; −1 means that the proposals were not drawn at
    random: each one's q is a point mass. q_logits and q_stats may be None if no slot samples from a drawn proposal.
    draft_id_of: [V] int32, the draft column of each target id or −1; None if the ids are the same. parity: [1] int32. seed: [S]
    int64. eos: [E] int32; ignore_eos: [S] uint8; max_length: [S] int32, in tokens, including the prompt.
    Writes tokens! [S, N] int32, length! [S] int32, last_token! [S] int32, done! [S] uint8 (1 at end of sequence or max_length)
    and outcome! [S, 2, 2] int32 at [:, parity]: (accepted, next token). The outcome is as decided, even if the end of the
    sequence cuts the commit short. Done slots are left unchanged, with outcome (−1, −1).
    If the row after the last accepted token is bad (`row_stats`), there is no next token: the accepted tokens are committed,
    the outcome is (accepted, −1), and done is FAILED, unless an accepted token ends the sequence.
    Returns path [S, T] int32: for each token committed now, the row whose distribution decided it; then −1.
    """
    return _ssd.verify.default(
        p_logits, p_stats, q_logits, q_stats, q_address, draft_id_of, spec_tokens, spec_len, parent, parity, seed, eos, ignore_eos,
        max_length, tokens, length, last_token, done, outcome,
    )  # fmt: skip


def cache_lookup(
    outcome: Tensor,
    guess: Tensor,
    guess_k: Tensor,
    branch_tokens: Tensor,
    length: Tensor,
    last_token: Tensor,
    max_length: Tensor,
    done: Tensor,
    parity: Tensor,
    draft_length: Tensor,
    draft_last_token: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    hit: Tensor,
    q_address: Tensor,
    bad: Tensor,
) -> None:
    """Look the outcome up among the branches, write the next speculation, and latch the draft's copy of the state.

    outcome: [S, 2, 2] int32, read at [:, parity]; guess, guess_k: [S, B] int32 from `fork`; branch_tokens: [S, B, K] int32.
    With B = 0 the cache is empty: plain speculative decoding. length, last_token, max_length: [S] int32 and done: [S] uint8 are
    the target's tables.
    Writes draft_length! [S] and draft_last_token! [S] int32 (the latched copy), spec_tokens! [S, K] int32, spec_len! [S] int32
    (K, or less near max_length, and at most the tokens of a branch before its first −1), hit! [S] uint8, q_address! [S] int32
    (the branch on a hit; B on a miss, where the fallback fills spec_tokens), and bad! [S] int32 (1 if a bad row cut the branch
    short or left a node without guesses). Flips parity! [1].
    """
    _ssd.cache_lookup.default(
        outcome, guess, guess_k, branch_tokens, length, last_token, max_length, done, parity, draft_length, draft_last_token,
        spec_tokens, spec_len, hit, q_address, bad,
    )  # fmt: skip


def ngram_propose(tokens: Tensor, length: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """Propose the tokens that followed an earlier match of the sequence's ending: the fallback that costs no forward pass.

    tokens: [S, N] int32; length: [S] int32; the last committed token is tokens[s, length[s]]. Takes the longest earlier match
    of the sequence's ending (at least one token; ties: the most recent; the match may overlap the ending).
    Returns spec_tokens [S, K] int32, at most K tokens that followed the match, then 0; and spec_len [S] int32, their number, 0
    without a match. These proposals are not drawn at random, so `verify` takes them with q_address −1.
    arXiv 2603.03251, Theorem 17; Saxena 2023, "Prompt lookup decoding".
    """
    return _ssd.ngram_propose.default(tokens, length, lookahead)


# Meta functions: only shapes and dtypes, for torch.compile and opcheck --------------------------------------------------------


@torch.library.register_fake("ssd::pack_weight")
def _(weight: Tensor, epilogue: str, scale: Tensor | None = None) -> Tensor:
    outputs, inputs = weight.shape
    if weight.device.type == "cuda":  # csrc/cuda/linear.cu
        return weight.new_empty(-(-outputs // 16) * 16, -(-inputs // 32) * 32)
    groups = 2 if epilogue == "silu_mul" else 1
    blocks = groups * -(-(outputs // groups) // 16)
    if weight.dtype == torch.int8:  # csrc/cpu/linear.cpp
        return weight.new_empty(blocks * 16, -(-inputs // 32) * 32 + 4, dtype=torch.uint8)
    return weight.new_empty(blocks * 16, -(-inputs // 2) * 2)


@torch.library.register_fake("ssd::embed")
def _(ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(ids.shape[0], table.shape[1])


@torch.library.register_fake("ssd::rms_norm")
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("ssd::linear")
def _(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    epilogue: str,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    float32_out: bool = False,
) -> Tensor:
    width = out_features // 2 if epilogue == "silu_mul" else out_features
    return x.new_empty(x.shape[0], width, dtype=torch.float32 if float32_out else x.dtype)


@torch.library.register_fake("ssd::rope_store_kv")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    kv_slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    return None


@torch.library.register_fake("ssd::paged_attention")
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    row_seq: Tensor,
    prefix_len: Tensor,
    scale: float,
    suffix_slots: Tensor | None = None,
    suffix_len: Tensor | None = None,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("ssd::move_kv")
def _(kv: Tensor, src: Tensor, dst: Tensor) -> None:
    return None


@torch.library.register_fake("ssd::row_stats")
def _(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    saguaro_f: int = 0,
    saguaro_c: float = 1.0,
) -> Tensor:
    return logits.new_empty(logits.shape[0], STATS)


@torch.library.register_fake("ssd::sample")
def _(logits: Tensor, stats: Tensor, seed: Tensor, position: Tensor, m: int = 1, *args: Tensor | int | None) -> Tensor:
    return logits.new_empty(logits.shape[0], m, dtype=torch.int32)


@torch.library.register_fake("ssd::fork")
def _(
    logits: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    table: Tensor,
    hit: Tensor,
    budget: int,
    id_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], budget)
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("ssd::verify")
def _(p_logits: Tensor, *args: Tensor | None) -> Tensor:
    return p_logits.new_empty(p_logits.shape[:2], dtype=torch.int32)


@torch.library.register_fake("ssd::cache_lookup")
def _(*args: Tensor) -> None:
    return None


@torch.library.register_fake("ssd::ngram_propose")
def _(tokens: Tensor, length: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape[0], lookahead), length.new_empty(tokens.shape[0])
