"""The documented Python face of `torch.ops.ssd`: shapes, dtypes, errors and the source of each op.

The schemas are csrc/ops.cpp. Every op has a CPU implementation in csrc/cpu; CUDA kernels are csrc/cuda, bound in csrc/cuda_ops.
Every op checks shape, dtype, device and contiguity and raises RuntimeError naming the argument that is wrong.

Letters: R rows, S sequence slots, K lookahead, B budget, V the target's vocabulary, Vd the draft's, D head size, T = K + 1 rows
a sequence for a chain or the number of nodes for a tree. A trailing ! marks what an op writes. Unless an argument says
otherwise tensors are contiguous; activations ("run dtype") are float32 or bfloat16 on the CPU, bfloat16 on CUDA.

Row invariance: a row's result depends neither on the other rows of the call nor on the number of threads. Greedy AR = SD = SSD
and sampled SSD = SD, bit for bit, rest on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import ssd.native  # noqa: F401  (registers torch.ops.ssd)

STATS = 8
"""Columns of `row_stats`: max, log-sum, cut value, cut id, top value, top id, scale, log C (csrc/common/distribution.h)."""

EPILOGUES = ("none", "add", "silu_mul")

_ssd = torch.ops.ssd


# The forward pass ------------------------------------------------------------------------------------------------------------


def pack_weight(weight: Tensor, epilogue: str = "none", scale: Tensor | None = None) -> Tensor:
    """Lay a weight out for `linear`, once, at load.

    weight: [out, in], run dtype, or int8 with scale, [out] float32 (on a CPU; the weight is then its product with scale, and x must be
    bfloat16). For the epilogue "silu_mul" it holds the gate's rows over the up projection's, so out is even.
    Returns an opaque tensor of the same dtype; its layout is the device's own and may be padded.
    Raises RuntimeError for another dtype, a scale without int8 or int8 without one, an unknown epilogue, or an odd number of gate and
    up rows; on CUDA also where in is no multiple of 8.
    """
    return _ssd.pack_weight.default(weight, epilogue, scale)


def embed(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of the embedding table.

    ids: [R] int32; an id outside [0, rows of table) reads row 0, so that the masked rows of a fixed-shape round need no branch.
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
    """x · weightᵀ with float32 accumulation, through one read of the weights for up to 256 rows.

    x: [R, in], run dtype. weight: from `pack_weight` with the same epilogue. out_features: rows of the weight before packing.
    bias: [out_features]. residual: [R, out_features], with "add" only.
    Epilogues: "none"; "add": + residual; "silu_mul": silu(gate) · up, [R, out_features / 2]. They are applied in float32, before
    the one rounding. float32_out: returns float32 without that rounding, for logits.
    Returns [R, out_features] unless the epilogue says otherwise, in the run dtype or float32.
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
    """Rotate q in place and write rotated k, and v, to the paged cache (rotary embedding, Su et al. 2021; halves, not pairs).

    q!: [R, Hq, D]; k, v: [R, Hkv, D]; a row may be a slice of a wider row (only the last two dimensions are contiguous).
    cos_sin: [positions, D] float32, cos of the D/2 frequencies, then sin. positions, kv_slots: [R] int32.
    q_norm, k_norm: [D], RMSNorm of each head before the rotation (Qwen3), with eps; both or neither.
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
    """Attention of rows over a paged prefix of their sequence, then over an explicit suffix of further KV slots.

    q: [R, Hq, D] (rows may be strided); k_cache, v_cache: [pages, page_size, Hkv, D]; Hq a multiple of Hkv,
    at most 32 times (CUDA: 16); D a multiple of 16 up to 256 (CUDA: 64, 80, 96, 128 or 256). scale: on CUDA above 0.
    page_table: [S, P] int32; row_seq: [R] int32 in [0, S); prefix_len: [R] int32 ≥ 0.
    suffix_slots: [R, W] int32, of which the first suffix_len[R] count; both or neither. A row must see at least one key.
    Key j of a row is page_table's for j < prefix_len, else suffix_slots[j − prefix_len]; moving a key between the two changes no
    bit. Softmax in float32. Returns [R, Hq, D], run dtype. One op serves prefill, decode, chain and tree verification and the
    draft's branches; no mask is ever built.
    """
    return _ssd.paged_attention.default(q, k_cache, v_cache, page_table, row_seq, prefix_len, scale, suffix_slots, suffix_len)


def move_kv(kv: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy K/V places, in all layers: what makes an accepted tree path contiguous again.

    kv!: [layers, 2, pages, page_size, Hkv, D]; src, dst: [N] int32 KV slots. Moves happen in order i = 0..N−1; a negative src or dst skips.
    """
    _ssd.move_kv.default(kv, src, dst)


# What tokens are drawn from, and drawing -------------------------------------------------------------------------------------


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    saguaro_f: int = 0,
    saguaro_c: float = 1.0,
) -> Tensor:
    """The processed distribution of each row as eight numbers, from which any probability costs one exp.

    logits: [R, V] float32. temperature, top_p, min_p: [R] float32; top_k: [R] int32. Processing in this order, ties to the lower id:
    temperature (0: the point mass on the argmax), the top_k largest (0: all), the shortest prefix with probability ≥ top_p (1: all),
    those with probability ≥ min_p · the largest (0: all). Then, for a draft, the top saguaro_f entries are multiplied by saguaro_c
    in (0, 1] and everything renormalised (arXiv 2603.03251, Definition 14); C = 1 changes nothing.
    Returns [R, STATS] float32.
    """
    return _ssd.row_stats.default(logits, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c)


def sample(logits: Tensor, stats: Tensor, seed: Tensor, position: Tensor, m: int = 1, id_of: Tensor | None = None) -> Tensor:
    """Draw m tokens a row without replacement, in drawn order, by an exponential race over counter-based noise (Gumbel top-m).

    logits: [R, V] float32; stats: its `row_stats`; seed: [R] int64; position: [R] int32, the position of the token drawn.
    id_of: [V] int32, the target id of each draft column, ascending. A greedy row gives its m largest in order (value, then id).
    Returns [R, m] int32 target ids, −1 where the distribution has fewer than m entries (only past the first).
    """
    return _ssd.sample.default(logits, stats, seed, position, m, id_of)


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
    """The likely outcomes of the verification under way: for each accepted count k the F_k likeliest next tokens.

    logits: [S, K+1, Vd] float32, the draft's rows behind the last committed token and each speculated one. spec_tokens: [S, K] int32;
    spec_len: [S] int32. table: [2, K+1, K+1] int32, F_k by (after a miss or a hit, spec_len, k), each row summing to budget, 0 beyond
    spec_len. hit: [S] uint8. For k < spec_len the drafted token is excluded: it would have been accepted. Ties to the lower id.
    Returns guess [S, B] int32 target ids, ordered by k, then rank, and guess_k [S, B] int32; an empty place (fewer columns than
    guesses) has guess 0 and guess_k −1. arXiv 2603.03251, section 4.
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
    """Exact verification of a chain or tree, and the commit of its outcome. Algorithm: Leviathan et al. 2023; for trees, sampling
    without replacement as in SpecInfer (Miao et al. 2024), with each rejected sibling removed from q and the residual carried on.

    p_logits: [S, T, V] float32, row i behind node i; p_stats: [S, T, STATS]. spec_tokens: [S, T−1] int32, node i at column i−1, −1 for an
    empty place; spec_len: [S] int32, nodes present. parent: [S, T] int32 with parent[0] = −1, parent[i] < i; None is a chain. T ≤ 64.
    q_logits: [S, 2, A, Q, Vd] float32 and q_stats [S, 2, A, Q, STATS], of which [parity, q_address, i] is the distribution that node
    i's children were drawn from; q_address: [S] int32, −1: the proposals were not drawn (δ). Both may be None where no slot
    samples from a drawn proposal. draft_id_of: [V] int32, target id → draft column or −1; None: the same ids.
    Q is at least T − 1. parity: [1] int32. seed: [S] int64. eos: [E] int32; ignore_eos: [S] uint8; max_length: [S] int32 tokens, the
    prompt included.
    Writes tokens! [S, N] int32, length! [S], last_token! [S], done! [S] uint8 (end of sequence or max_length) and outcome! [S, 2, 2]
    int32 at [:, parity]: (accepted, next token) as decided, also where the end of the sequence cuts the commit short. Done slots are
    left alone, with outcome (−1, −1).
    Returns path [S, T] int32: the row whose distribution decided each token committed now, −1 beyond.
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
) -> None:
    """Look the outcome up among the branches, hand out the next speculation, and latch the draft's own copy of the state.

    outcome: [S, 2, 2] int32, read at [:, parity]; guess, guess_k: [S, B] int32 from `fork`; branch_tokens: [S, B, K] int32. B = 0 is an
    empty cache: plain speculative decoding. length, last_token, max_length: [S] int32 and done: [S] uint8 are the target's.
    Writes draft_length!, draft_last_token!, spec_tokens! [S, K], spec_len! [S] (K, less at the end of a sequence), hit! [S] uint8 and
    q_address! [S] int32 (the branch, or B on a miss: the fallback fills spec_tokens), and flips parity! [1].
    """
    _ssd.cache_lookup.default(
        outcome, guess, guess_k, branch_tokens, length, last_token, max_length, done, parity, draft_length, draft_last_token,
        spec_tokens, spec_len, hit, q_address,
    )  # fmt: skip


def ngram_propose(tokens: Tensor, length: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """Propose what followed the longest earlier match of the sequence's own ending: the fallback that costs no forward pass.

    tokens: [S, N] int32; length: [S] int32, the last committed token being tokens[s, length[s]]. Of all earlier places where text of
    at least one token agrees with the ending, the one where most of it does is taken, of equals the most recent; it may overlap the
    ending. Returns spec_tokens [S, K] int32, the tokens behind that place, as many as there are up to K, then 0; and spec_len [S]
    int32, how many, 0 where nothing matches. Such proposals were not drawn: `verify` takes them with q_address −1.
    arXiv 2603.03251, Theorem 17; Saxena 2023, "Prompt lookup decoding".
    """
    return _ssd.ngram_propose.default(tokens, length, lookahead)


# Meta functions: shapes and dtypes alone, for torch.compile and opcheck ---------------------------------------------------------


@torch.library.register_fake("ssd::pack_weight")
def _(weight: Tensor, epilogue: str, scale: Tensor | None = None) -> Tensor:
    outputs, inputs = weight.shape
    if weight.device.type == "cuda":  # csrc/cuda/linear.cu
        return weight.new_empty(-(-outputs // 16) * 16, -(-inputs // 32) * 32)
    groups = 2 if epilogue == "silu_mul" else 1
    scales = 4 if weight.dtype == torch.int8 else 0  # csrc/cpu/linear.cpp
    return weight.new_empty(groups * -(-(outputs // groups) // 16) * 16, -(-inputs // 2) * 2 + scales)


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
def _(logits: Tensor, stats: Tensor, seed: Tensor, position: Tensor, m: int = 1, id_of: Tensor | None = None) -> Tensor:
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
