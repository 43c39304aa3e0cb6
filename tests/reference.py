"""The slow, obvious oracle of every op: plain torch and Python loops, no ssd import, no cleverness.

The kernels of every back end are compared with these functions. If this file and a kernel disagree, read the method first.
Floating-point work is done in float64 and rounded at the end, so those comparisons have a tolerance. Decisions (which id wins,
which token is accepted) are compared exactly, on inputs without near-ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STATS = 8
MAX, LOG_SUM, CUT_VALUE, CUT_ID, TOP_VALUE, TOP_ID, SCALE, LOG_C = range(STATS)
ACCEPT, RESAMPLE, DRAFT = range(3)


# The forward pass ------------------------------------------------------------------------------------------------------------


def embed(ids: Tensor, table: Tensor) -> Tensor:
    known = (ids >= 0) & (ids < table.shape[0])
    return table[torch.where(known, ids, 0).long()]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.double()).to(x.dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    epilogue: str = "none",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    float32_out: bool = False,
) -> Tensor:
    y = x.double() @ weight.double().T
    if bias is not None:
        y = y + bias.double()
    if epilogue == "add":
        assert residual is not None
        y = y + residual.double()
    if epilogue == "silu_mul":
        gate, up = y.chunk(2, dim=-1)
        y = torch.nn.functional.silu(gate) * up
    return y.to(torch.float32 if float32_out else x.dtype)


def round_to_int8(x: Tensor) -> Tensor:
    """x as `linear` reads it beside int8 weights: each group of 32 inputs of a row is rounded to int8 times a float32 scale."""
    rows, width = x.shape
    groups = torch.nn.functional.pad(x.float(), (0, -width % 32)).view(rows, -1, 32)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    inverse = torch.full_like(largest, 127) / largest  # "127 / largest" would be 127 times a rounded reciprocal
    rounded = torch.where(largest > 1e-36, groups * inverse, 0.0).round()
    return (rounded.double() * (largest / 127).double()).view(rows, -1)[:, :width]


def rotate(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """x: [R, H, D]; rotates the first half of D against the second."""
    half = x.shape[-1] // 2
    cos = cos_sin[positions.long(), None, :half].double()
    sin = cos_sin[positions.long(), None, half:].double()
    a, b = x[..., :half].double(), x[..., half:].double()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (rotated q, the new k_cache, the new v_cache)."""
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    flat_k, flat_v = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    rotated = rotate(k, cos_sin, positions)
    for row, slot in enumerate(kv_slots.tolist()):
        flat_k[slot], flat_v[slot] = rotated[row], v[row]
    return rotate(q, cos_sin, positions), k_cache, v_cache


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
    page_size = k_cache.shape[1]
    group = q.shape[1] // k_cache.shape[2]
    out = torch.empty_like(q, dtype=torch.float64)
    for row in range(q.shape[0]):
        pages = page_table[row_seq[row]]
        slots = [int(pages[j // page_size]) * page_size + j % page_size for j in range(int(prefix_len[row]))]
        if suffix_slots is not None and suffix_len is not None:
            slots += suffix_slots[row, : int(suffix_len[row])].tolist()
        keys = k_cache.flatten(0, 1)[slots].double().repeat_interleave(group, dim=1)  # [keys, Hq, D]
        values = v_cache.flatten(0, 1)[slots].double().repeat_interleave(group, dim=1)
        weights = torch.softmax(torch.einsum("hd,jhd->hj", q[row].double(), keys) * scale, dim=-1)
        out[row] = torch.einsum("hj,jhd->hd", weights, values)
    return out.to(q.dtype)


def move_kv(kv: Tensor, page_table: Tensor, length: Tensor, path: Tensor) -> Tensor:
    kv = kv.clone()
    kv_slots, page_size = kv.flatten(2, 3), kv.shape[3]
    for s, nodes in enumerate(path.tolist()):
        for step, node in enumerate(nodes[1:], 1):
            if node < 0:
                break
            src, dst = (kv_slot(page_table[s], int(length[s]) + i, page_size) for i in (node, step))
            kv_slots[:, :, dst] = kv_slots[:, :, src]
    return kv


# The rows of a forward pass --------------------------------------------------------------------------------------------------


def kv_slot(pages: Tensor, position: int, page_size: int) -> int:
    return int(pages[position // page_size]) * page_size + position % page_size


def tree_row(
    tokens: Tensor, spec_tokens: Tensor, length: int, pages: Tensor, parent: list[int] | None, page_size: int, node: int
) -> tuple[int, int, int, int, list[int]]:
    """One node of one sequence: (id, position, KV slot, keys in the prefix, KV slots of the suffix)."""

    def slot_of(position: int) -> int:
        return kv_slot(pages, position, page_size) if length else 0

    stored_at = max(0, length + node)
    token = int(tokens[stored_at]) if node <= 0 else int(spec_tokens[node - 1])
    slot = slot_of(stored_at)
    if parent is None or node <= 0:
        return token, stored_at, slot, stored_at + 1, []
    ancestors = [node]
    while parent[ancestors[0]] > 0:
        ancestors.insert(0, parent[ancestors[0]])
    suffix = [slot_of(length + i) for i in ancestors]
    return token, length + len(ancestors), slot, length + 1, suffix


def branch_row(
    guess: int, guess_k: int, branch_tokens: list[int], length: int, scratch: list[int], step: int
) -> tuple[int, int, int, int, list[int]]:
    """One step of one branch, as `tree_row` describes a node."""
    trunk = length + 1 + max(guess_k, 0)
    return ([guess, *branch_tokens][step], trunk + step, scratch[step], trunk, scratch[: step + 1])


# Randomness ------------------------------------------------------------------------------------------------------------------


def philox(key: int, counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 on Python integers."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = (c & mask for c in counter)
    k0, k1 = key & mask, (key >> 32) & mask
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((b >> 32) ^ c1 ^ k0) & mask, b & mask, ((a >> 32) ^ c3 ^ k1) & mask, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [c0, c1, c2, c3]


def uniform(seed: int, position: int, purpose: int, sibling: int) -> float:
    return (philox(seed, (position, purpose, sibling, 0))[0] >> 8) * 2.0**-24


def race_times(seed: int, position: int, purpose: int, weights: Tensor) -> Tensor:
    """Each entry's time in the exponential race; +inf for weight 0."""
    times = torch.full_like(weights, math.inf, dtype=torch.float64)
    for entry in weights.nonzero().flatten().tolist():
        x = philox(seed, (position, purpose, 0, entry // 4))[entry % 4]
        u = min((x + 0.5) * 2.0**-32, 1 - 2.0**-24)
        times[entry] = -math.log1p(-u) / float(weights[entry])
    return times


# Distributions ---------------------------------------------------------------------------------------------------------------


def is_bad(logits: Tensor) -> bool:
    """Whether a row has no distribution: it has NaN or +inf, or no finite number. −inf is a masked logit."""
    values = logits.tolist()
    return any(math.isnan(z) or z == math.inf for z in values) or not any(math.isfinite(z) for z in values)


def ordered(logits: Tensor) -> list[int]:
    """Ids by (value descending, id ascending)."""
    values = logits.tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def distribution(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, f: int = 0, c: float = 1.0
) -> Tensor:
    """The processed distribution of one row of logits, [V] float64: the distribution that tokens are drawn from. A bad row has
    none: all zeros."""
    if is_bad(logits):
        return torch.zeros(len(logits), dtype=torch.float64)
    order = ordered(logits)
    if temperature == 0:
        return torch.nn.functional.one_hot(torch.tensor(order[0]), len(order)).double()
    kept = order[: top_k or None]
    weight = torch.zeros(len(order), dtype=torch.float64)
    weight[kept] = torch.softmax(logits[kept].double() / temperature, dim=0)
    if top_p < 1:
        cumulative, survivors = 0.0, []
        for i in kept:
            if survivors and cumulative >= top_p:
                break
            survivors.append(i)
            cumulative += float(weight[i])
        kept = survivors
    kept = [i for i in kept if float(weight[i]) >= min_p * float(weight[order[0]])]
    final = torch.zeros_like(weight)
    final[kept] = weight[kept]
    if c < 1:
        final[order[:f]] *= c
    return final / final.sum()


def sample(weights: Tensor, seed: int, position: int, m: int, purpose: int = DRAFT) -> list[int]:
    """m ids without replacement, in drawn order; then −1 when the distribution is exhausted."""
    times = race_times(seed, position, purpose, weights)
    ranked = sorted(weights.nonzero().flatten().tolist(), key=lambda i: (float(times[i]), i))[:m]
    return ranked + [-1] * (m - len(ranked))


def sample_greedy(logits: Tensor, m: int) -> list[int]:
    ranked = candidates(logits)[:m]
    return ranked + [-1] * (m - len(ranked))


def candidates(logits: Tensor) -> list[int]:
    """The ids that may be proposed or guessed, in order: no masked ones, and none of a bad row."""
    return [] if is_bad(logits) else [i for i in ordered(logits) if float(logits[i]) > -math.inf]


# The speculation cache and its verification -----------------------------------------------------------------------------------


def fork(
    logits: Tensor, spec_tokens: list[int], spec_len: int, fan_out: list[int], id_of: list[int] | None = None
) -> list[tuple[int, int]]:
    """The (k, guess) pairs of one sequence; logits: [K+1, Vd]. k is −1 where there is no guess, −2 where the row is bad."""
    ids = id_of or list(range(logits.shape[1]))
    pairs: list[tuple[int, int]] = []
    for k in range(spec_len + 1):
        tokens = [ids[column] for column in candidates(logits[k])]
        if k < spec_len:
            tokens = [t for t in tokens if t != spec_tokens[k]]
        chosen = [(k, t) for t in tokens[: fan_out[k]]]
        pairs += chosen + [(-2 if is_bad(logits[k]) else -1, 0)] * (fan_out[k] - len(chosen))
    return pairs


@dataclass
class Verdict:
    accepted: list[int]  # node indices, root excluded
    token: int  # the recovery or bonus token; −1 if the row that decides it is bad


def verify(
    p: Tensor,
    q: Tensor | None,
    tokens: list[int],
    parent: list[int],
    seed: int,
    root_position: int,
) -> Verdict:
    """Verify one sequence's tree by walking down it, in the target's vocabulary.

    p: [T, V] processed target distributions, zeros for a bad row. q: [T or T−1, V], the distributions that each node's children
    were drawn from; None for proposals that were not drawn at random (δ). tokens[i − 1] is node i's token; −1 marks a missing
    node, which is skipped. A greedy row is a point mass and needs no special case: all siblings are compared with the argmax,
    like the first.
    """
    node, accepted = 0, []
    while True:
        position = root_position + len(accepted) + 1
        weight = p[node].double().clone()
        if float(weight.sum()) == 0:
            return Verdict(accepted, -1)
        proposal = None if q is None or node >= q.shape[0] else q[node].double().clone()
        greedy = float(weight.max()) == 1.0
        chosen = None
        for sibling, child in enumerate(i for i in range(1, len(parent)) if parent[i] == node):
            token = tokens[child - 1]
            if token < 0:
                continue
            if greedy:
                if float(weight[token]) == 1.0:
                    chosen = child
                    break
                continue
            delta = torch.zeros_like(weight)
            delta[token] = 1.0
            drawn = delta if proposal is None else proposal
            if uniform(seed, position, ACCEPT, sibling) * float(drawn[token]) < float(weight[token]):
                chosen = child
                break
            rest = (weight - drawn).clamp_min(0)
            weight = rest / rest.sum() if float(rest.sum()) > 0 else weight
            if proposal is not None:
                proposal[token] = 0
                proposal = proposal / proposal.sum() if float(proposal.sum()) > 0 else proposal
        if chosen is None:
            return Verdict(accepted, sample(weight, seed, position, 1, RESAMPLE)[0])
        accepted.append(chosen)
        node = chosen


def lookup(
    outcome: tuple[int, int],
    guesses: list[tuple[int, int]],
    branches: list[list[int]],
    length: int,
    max_length: int,
    done: bool,
    draft_context: int,
) -> tuple[int, int, bool]:
    """Returns (the branch, or −1 for a miss; the next speculation's length; whether a bad row of the draft took something).

    guesses: (k, token), where k is −2 after a bad row. branches: the tokens of each guess, −1 after a bad row.
    """
    proposes = not done and length < draft_context
    room = max(0, min(len(branches[0]), max_length - length - 2, draft_context - length)) if proposes else 0
    if not proposes or outcome[0] < 0:
        return -1, room, False
    took_guesses = any(k == -2 for k, _ in guesses)
    if outcome not in guesses:
        return -1, room, took_guesses
    branch = guesses.index(outcome)
    whole = [*branches[branch][:room], -1].index(-1)
    return branch, whole, took_guesses or whole < room


def rank_outcome(
    logits: Tensor, node: int, token: int, spec_tokens: list[int], spec_len: int, draft_id_of: list[int] | None, budget: int
) -> int:
    """The rank of an outcome's token in the draft's logits after its node, [K+1, Vd], without the drafted token there."""

    def column(of: int) -> int:
        return of if draft_id_of is None else draft_id_of[of]

    vocabulary = logits.shape[1]
    if not 0 <= column(token) < vocabulary or not float(logits[node, column(token)]) > -math.inf:
        return max(vocabulary, budget)
    drafted = column(spec_tokens[node]) if node < spec_len else -1
    candidates = [i for i in ordered(logits[node]) if i != drafted or i == column(token)]
    return candidates.index(column(token))


def ngram_propose(tokens: list[int], lookahead: int) -> list[int]:
    """The tokens that followed the longest earlier match of the ending of `tokens`; of equally long matches, the most
    recent."""
    last = len(tokens) - 1

    def agreeing(end: int) -> int:
        count = 0
        while count <= end and tokens[end - count] == tokens[last - count]:
            count += 1
        return count

    end = max(range(last), key=lambda e: (agreeing(e), e), default=None)
    return [] if end is None or agreeing(end) == 0 else tokens[end + 1 :][:lookahead]
