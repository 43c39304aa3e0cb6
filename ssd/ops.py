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

NO_LIMIT = 2**31 - 3
"""The `draft_context` of a draft that no sequence outgrows."""

EPILOGUES = ("none", "add", "silu_mul")

_ssd = torch.ops.ssd


# The forward pass ------------------------------------------------------------------------------------------------------------


def pack_weight(weight: Tensor, epilogue: str = "none", scale: Tensor | None = None) -> Tensor:
    """Pack a weight into the layout that `linear` reads, once, at load.

    weight: [out, in], run dtype; or int8 with scale, [out] float32 (the real weight is weight · scale). For the epilogue
    "silu_mul" the gate's rows come first, then the up projection's, so out is even.
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
    """RMSNorm (Zhang and Sennrich, 2019), computed in float32: x / sqrt(mean(x²) + eps) · weight.

    x: [R, d], rows may be strided; weight: [d]. Returns [R, d].
    """
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

    On a CPU, x is rounded to int8 too beside int8 weights, each 32 inputs of a row with one scale (their largest magnitude /
    127, as in GGUF's Q8_0), and the products are summed exactly, as integers. On CUDA x keeps its dtype.
    x: [R, in], run dtype. weight: from `pack_weight` with the same epilogue. out_features: rows of the weight before packing.
    bias: [out_features]. residual: [R, out_features], for "add" only.
    Epilogues, all computed in float32 before the result is rounded once: "none"; "add" adds residual; "silu_mul" returns
    silu(gate) · up, [R, out_features / 2]. float32_out: leave the result in float32, for logits.
    Returns [R, out_features], run dtype or float32, except as the epilogue says.
    """
    return _ssd.linear.default(x, weight, out_features, epilogue, bias, residual, float32_out)


def logits(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`linear` with float32_out and without an epilogue, written to a table: the logits that another program will read.

    out!: [R, out_features] float32.
    """
    _ssd.logits.default(x, weight, bias, out)


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


def move_kv(kv: Tensor, page_table: Tensor, length: Tensor, path: Tensor) -> None:
    """Make the K/V of each accepted tree path contiguous: move its i-th node to i KV slots after the root, in all layers.

    kv!: [layers, 2, pages, page_size, Hkv, D]. page_table: [S, P] int32. length: [S] int32, may be strided: the root's
    position, before the commit. path: [S, T] int32 from `verify`; node j was stored j slots after the root. Moves happen in
    the order of the path, which ends at its first negative entry.
    """
    _ssd.move_kv.default(kv, page_table, length, path)


# The rows of a forward pass --------------------------------------------------------------------------------------------------

RowTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""ids, positions, kv_slots, row_seq, prefix_len: [R] int32; suffix_slots: [R, W] int32; suffix_len: [R] int32."""


def tree_rows(
    tokens: Tensor,
    spec_tokens: Tensor,
    length: Tensor,
    page_table: Tensor,
    parent: Tensor | None,
    page_size: int,
    first: int,
    count: int,
    depth: int = 0,
) -> RowTensors:
    """The rows of `count` nodes of every slot's chain or tree, from node `first` on; one slot's rows are adjacent.

    Node 0, the root, is the last committed token; node −1 is the token before it. tokens: [S, N] int32; length: [S] int32, the
    root's position. spec_tokens: [S, T−1] int32, node i's token in column i−1. page_table: [S, P] int32. parent: [T] int32 with
    parent[i] < i, and depth: the number of levels below the root; None and 0 for a chain. Node i's K/V is written i KV slots
    after the root's. A slot of length 0 has no sequence: its rows are written to the null page's first KV slot.
    In a chain, a row sees all keys up to its own, as prefix. In a tree, a node after the root sees the keys up to the root's as
    prefix, and then its ancestors and itself as suffix.
    Returns `RowTensors`, with W = depth; unused entries of suffix_slots are 0.
    """
    return _ssd.tree_rows.default(tokens, spec_tokens, length, page_table, parent, page_size, first, count, depth)


def branch_rows(
    guess: Tensor, guess_k: Tensor, branch_tokens: Tensor, length: Tensor, scratch: Tensor, step: int
) -> RowTensors:
    """The rows of one step of every branch: its guess at step 0, then the token that the step before drew.

    guess, guess_k: [S, B] int32 from `fork`; an unused guess counts as one for node 0. branch_tokens: [S, B, K] int32. length:
    [S] int32, the root's position. scratch: [S, B, K] int32, the KV slots of the branches' own tokens. A row sees the keys up
    to its guess's node as prefix, and then the tokens of its branch as suffix.
    Returns `RowTensors`, with R = S · B and W = step + 1.
    """
    return _ssd.branch_rows.default(guess, guess_k, branch_tokens, length, scratch, step)


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

    logits: [R, V] float32; each of the S slots has R / S adjacent rows. temperature, top_p, min_p: [S] float32; top_k: [S]
    int32. Processing, in this order, with ties to the lower id: divide by temperature (0: a point mass on the argmax); keep the
    top_k largest (0: all); keep the shortest prefix whose probabilities sum to at least top_p (1: all); keep those of at least
    min_p times the largest (0: all). Then, for a draft, multiply the top saguaro_f entries by saguaro_c in (0, 1] and
    renormalise (arXiv 2603.03251, Definition 14); saguaro_c = 1 changes nothing.
    Returns [R, STATS] float32.
    """
    return _ssd.row_stats.default(logits, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c)


def sample(
    logits: Tensor,
    stats: Tensor,
    seed: Tensor,
    position: Tensor,
    tokens: Tensor,
    m: int = 1,
    id_of: Tensor | None = None,
    missed: Tensor | None = None,
    parity: Tensor | None = None,
    next_half: bool = False,
    q_logits: Tensor | None = None,
    q_stats: Tensor | None = None,
    spec_len: Tensor | None = None,
    bad: Tensor | None = None,
    drafted: int = 0,
) -> None:
    """Draw m tokens per row without replacement, by an exponential race over counter-based noise (Gumbel top-m); keep the
    distributions that they are drawn from.

    logits: [R, V] float32; each of the S slots has R / S adjacent rows. stats: their `row_stats`; seed: [S] int64; position:
    [R] int32, may be strided: the position of the row's own token, after which a token is drawn. id_of: [V] int32, the target
    id of each draft column, ascending. A greedy row draws its m largest by value, ties to the lower id.
    Writes tokens! [S, R / S · m] int32, with any strides: target ids in the order drawn, then −1 if the distribution has fewer
    than m entries. It has at least one, except for a bad row (`row_stats`), which has none. missed: [S] uint8; where it is 0,
    tokens, spec_len and bad stay as they are.
    Writes, if they are given, q_logits! [S, 2, R / S, V] and q_stats! [S, 2, R / S, STATS] float32, of which only the last
    dimension is contiguous, in half parity, or with next_half in half 1 − parity. parity: [1] int32.
    spec_len!, bad!: [S] int32, for the drafts of S speculations; give both or neither. drafted: the number of tokens in each of
    them before these. A bad row whose slot has spec_len > drafted sets bad to 1. If it is the slot's only row, the speculation
    ends there: it sets spec_len to `drafted`.
    """
    _ssd.sample.default(
        logits, stats, seed, position, tokens, m, id_of, missed, parity, next_half, q_logits, q_stats, spec_len, bad, drafted
    )


# The speculation cache and its verification -----------------------------------------------------------------------------------


def fork(
    logits: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    table: Tensor,
    hit: Tensor,
    guess: Tensor,
    guess_k: Tensor,
    id_of: Tensor | None = None,
) -> None:
    """Guess the outcomes of the verification in flight: for each accepted count k, the F_k likeliest next tokens.

    logits: [S, K+1, Vd] float32, the draft's logits after the last committed token and after each speculated one. spec_tokens:
    [S, K] int32; spec_len: [S] int32. table: [2, K+1, K+1] int32, F_k indexed by (hit, spec_len, k); each row sums to B and is
    0 beyond spec_len. hit: [S] uint8. For k < spec_len the drafted token is excluded: it would have been accepted. Ties to the
    lower id.
    Writes guess! [S, B] int32, target ids ordered by k and then by rank, and guess_k! [S, B] int32. Masked columns are not
    guessed. If there are fewer columns than guesses, the unused entries have guess 0 and guess_k −1; those of a bad row
    (`row_stats`) have guess_k −2. arXiv 2603.03251, section 4.
    """
    _ssd.fork.default(logits, spec_tokens, spec_len, table, hit, guess, guess_k, id_of)


def verify(
    p_logits: Tensor,
    p_stats: Tensor,
    q_logits: Tensor | None,
    q_stats: Tensor | None,
    q_address: Tensor,
    draft_id_of: Tensor | None,
    spec_tokens: Tensor,
    spec_len: Tensor,
    hit: Tensor,
    bad: Tensor,
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
    path: Tensor,
    report: Tensor,
) -> None:
    """Verify a chain or tree exactly, and commit the outcome. Algorithm: Leviathan et al. 2023; for trees, sampling without
    replacement as in SpecInfer (Miao et al. 2024): each rejected sibling is removed from q, and the next sibling is tested
    against the residual.

    p_logits: [S, T, V] float32, row i after node i; p_stats: [S, T, STATS]. spec_tokens: [S, T−1] int32, node i in column i−1,
    −1 for a missing node; spec_len: [S] int32, the number of nodes. hit: [S] uint8 and bad: [S] int32, for the
    report. parent: [S, T] int32 with parent[0] = −1, parent[i] < i, slots may be strided; None for a chain. T ≤ 64.
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
    Writes path! [S, T] int32: for each token committed now, the row whose distribution decided it; then −1. Writes report!
    [S, 6 + N] int32: length, done, the accepted count, spec_len, hit, bad, and the N ≤ 64 newest tokens (csrc/common/report.h).
    """
    _ssd.verify.default(
        p_logits, p_stats, q_logits, q_stats, q_address, draft_id_of, spec_tokens, spec_len, hit, bad, parent, parity, seed, eos,
        ignore_eos, max_length, tokens, length, last_token, done, outcome, path, report,
    )  # fmt: skip


def rank_outcomes(
    logits: Tensor,
    outcome: Tensor,
    parity: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    hit: Tensor,
    done: Tensor,
    length: Tensor,
    draft_id_of: Tensor | None,
    budget: int,
    draft_context: int,
    seen: Tensor,
) -> None:
    """Rank the token of each outcome among the draft's guesses for the outcome's node, as `fork` orders them.

    logits: [S, K+1, Vd] float32, those that `fork` guessed from. outcome: [S, 2, 2] int32, read at [:, parity]; parity: [1]
    int32; spec_tokens: [S, K] int32, spec_len: [S] int32 and hit: [S] uint8, of the verified speculation; done: [S] uint8 and
    length: [S] int32, of the target. draft_context: the tokens that the draft may read; after as many it guesses nothing.
    draft_id_of: [V] int32, the draft column of each target id or −1; None if the ids are the same.
    Writes seen! [S, 4] int32: hit, spec_len, node and rank, from 0; the rank of a token that the draft cannot propose, because
    it lacks it or its logit is masked or NaN, is max(Vd, budget). All four are −1 for a done slot, for an outcome of −1,
    and where the draft guesses nothing.
    """
    _ssd.rank_outcomes.default(
        logits, outcome, parity, spec_tokens, spec_len, hit, done, length, draft_id_of, budget, draft_context, seen
    )


def cache_lookup(
    outcome: Tensor,
    guess: Tensor,
    guess_k: Tensor,
    branch_tokens: Tensor,
    length: Tensor,
    last_token: Tensor,
    max_length: Tensor,
    done: Tensor,
    nodes_within: Tensor | None,
    draft_context: int,
    parity: Tensor,
    draft_length: Tensor,
    draft_last_token: Tensor,
    spec_tokens: Tensor,
    spec_len: Tensor,
    hit: Tensor,
    missed: Tensor,
    q_address: Tensor,
    bad: Tensor,
) -> None:
    """Look the outcome up among the branches, write the next speculation, and latch the draft's copy of the state.

    outcome: [S, 2, 2] int32, read at [:, parity]; guess, guess_k: [S, B] int32 from `fork`; branch_tokens: [S, B, K] int32.
    With B = 0 the cache is empty: plain speculative decoding. length, last_token, max_length: [S] int32 and done: [S] uint8 are
    the target's tables. nodes_within: [D+1] int32, a tree's number of nodes down to each depth, without the root, so that only
    whole levels are proposed; None for a chain. draft_context: the positions that the draft was trained for; it reads no token
    at a later one, so nothing is proposed there.
    Writes draft_length! [S] and draft_last_token! [S] int32 (the latched copy; length 0 beyond draft_context), spec_tokens!
    [S, K] int32, spec_len! [S] int32 (K, or less near max_length and draft_context, and at most the tokens of a branch before
    its first −1), hit! [S] uint8, missed! [S] uint8 (1 if the fallback has to fill spec_tokens: no hit, and spec_len is not 0),
    q_address! [S] int32 (the branch on a hit; B on a miss), and bad! [S] int32 (1 if a bad row cut the branch short or left a
    node without guesses). Flips parity! [1].
    """
    _ssd.cache_lookup.default(
        outcome, guess, guess_k, branch_tokens, length, last_token, max_length, done, nodes_within, draft_context, parity, draft_length,
        draft_last_token, spec_tokens, spec_len, hit, missed, q_address, bad,
    )  # fmt: skip


def ngram_propose(
    tokens: Tensor, length: Tensor, missed: Tensor, spec_tokens: Tensor, spec_len: Tensor, q_address: Tensor
) -> None:
    """Propose the tokens that followed an earlier match of the sequence's ending: the fallback that costs no forward pass.

    tokens: [S, N] int32; length: [S] int32; the last committed token is tokens[s, length[s]]. Takes the longest earlier match
    of the sequence's ending (at least one token; ties: the most recent; the match may overlap the ending).
    Writes, where missed [S] uint8 is not 0, spec_tokens! [S, K] int32: at most K tokens that followed the match, then 0;
    spec_len! [S] int32: their number, 0 without a match, or what it was if that is less; and q_address! [S] int32: −1, because
    these proposals are not drawn at random. arXiv 2603.03251, Theorem 17; Saxena 2023, "Prompt lookup decoding".
    """
    _ssd.ngram_propose.default(tokens, length, missed, spec_tokens, spec_len, q_address)


# Meta functions: only shapes and dtypes, for torch.compile and opcheck --------------------------------------------------------


@torch.library.register_fake("ssd::pack_weight")
def _(weight: Tensor, epilogue: str, scale: Tensor | None = None) -> Tensor:
    outputs, inputs = weight.shape
    int8 = weight.dtype == torch.int8
    if weight.device.type == "cuda":  # csrc/cuda/linear.cu
        width = -(-inputs // 32) * 32
        return weight.new_empty(-(-outputs // 16) * 16, width + 4 * int8, dtype=torch.uint8 if int8 else weight.dtype)
    groups = 2 if epilogue == "silu_mul" else 1
    blocks = groups * -(-(outputs // groups) // 16)
    if int8:  # csrc/cpu/linear.cpp
        return weight.new_empty(blocks * 16, -(-inputs // 32) * 32 + 4, dtype=torch.uint8)
    return weight.new_empty(blocks * 16, -(-inputs // 2) * 2)


@torch.library.register_fake("ssd::embed")
def _(ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(ids.shape[0], table.shape[1])


@torch.library.register_fake("ssd::rms_norm")
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


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


def _row_tensors(like: Tensor, rows: int, width: int) -> RowTensors:
    ids, positions, kv_slots, row_seq, prefix_len, suffix_len = (like.new_empty(rows) for _ in range(6))
    return ids, positions, kv_slots, row_seq, prefix_len, like.new_empty(rows, width), suffix_len


@torch.library.register_fake("ssd::tree_rows")
def _(
    tokens: Tensor,
    spec_tokens: Tensor,
    length: Tensor,
    page_table: Tensor,
    parent: Tensor | None,
    page_size: int,
    first: int,
    count: int,
    depth: int = 0,
) -> RowTensors:
    return _row_tensors(tokens, tokens.shape[0] * count, depth)


@torch.library.register_fake("ssd::branch_rows")
def _(guess: Tensor, guess_k: Tensor, branch_tokens: Tensor, length: Tensor, scratch: Tensor, step: int) -> RowTensors:
    return _row_tensors(guess, guess.numel(), step + 1)


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


for _writes_only in ("logits", "move_kv", "sample", "fork", "verify", "rank_outcomes", "cache_lookup", "ngram_propose"):
    torch.library.register_fake(f"ssd::{_writes_only}", lambda *args, **kwargs: None)
