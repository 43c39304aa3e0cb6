// The proposals of one slot, and the arithmetic that judges them. csrc/cpu/verify.cpp keeps the residuals of p and q as vectors
// over the vocabulary; here they are computed for one id at a time. A rejection is stored as a token and two scales. With
// these, any block computes the residual of p and of q from p and q themselves, in a few operations.
#pragma once

#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {

constexpr int32_t kMaxNodes = 64;
constexpr int32_t kNone = 0;  // no child: node 0 is the root, which is nobody's child

// The nodes of a slot, in shared memory. A chain is a tree whose nodes have one child each.
struct Tree {
  int32_t present;  // the proposals are the nodes 1 .. present
  int32_t token[kMaxNodes], parent[kMaxNodes];

  // The child of `node` after `child`, or kNone; its first child for child == node. An empty node, with a negative token, is no
  // child.
  __device__ __forceinline__ int32_t next_child(int32_t node, int32_t child) const {
    for (++child; child <= present; ++child)
      if (parent[child] == node && token[child] >= 0) return child;
    return kNone;
  }

  // The depth of a node; the root's is 0. The loop ends whatever the table holds.
  __device__ __forceinline__ int32_t depth(int32_t node) const {
    int32_t depth = 0;
    for (; node > 0 && depth < kMaxNodes; node = parent[node]) ++depth;
    return depth;
  }
};

// Loads the tree. All threads of a block call this, and all loads are in flight at the same time. A token outside the
// vocabulary becomes an empty node, because the host cannot check tokens on the device.
__device__ __forceinline__ void load_tree(const VerifyParams& p, int64_t slot, Tree& tree) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i == 0) tree.present = min(max(p.spec_len[slot], 0), p.nodes - 1);
  if (i >= 1 && i < p.nodes) {
    const int32_t token = p.spec_tokens[slot * (p.nodes - 1) + i - 1];
    const int32_t parent = p.parent != nullptr ? p.parent[slot * p.parent_stride + i] : i - 1;
    tree.token[i] = token < p.vocabulary ? token : -1;
    tree.parent[i] = parent < i ? parent : -1;
  }
  __syncthreads();
}

// A rejected proposal. The scales make the remaining p and q sum to 1 again. p_scale is 0 if rounding leaves nothing of p: then
// p stays.
struct Rejection {
  int32_t token;
  float p_scale, q_scale;
};

struct Judgement {
  int32_t accepted;  // a child of the node, or kNone
  int32_t rejected;  // number of children before it
};

struct Weights {  // p and q of one id
  float p, q;
};

// The distributions and the randomness that judge the children of one node.
struct Judge {
  const float *p_logits, *p_stats;  // [vocabulary], [kStats]
  const float *q_logits, *q_stats;  // [draft_vocabulary], [kStats]; null if the proposals were not drawn from a distribution
  const int32_t* draft_id_of;       // [vocabulary] or null
  int32_t draft_vocabulary;
  int64_t seed;
  int32_t position;  // of the token that this node decides

  __device__ __forceinline__ bool greedy() const { return is_greedy(p_stats); }
  __device__ __forceinline__ bool drawn() const { return q_logits != nullptr; }

  // The column of a target id in the draft's logits, or -1.
  __device__ __forceinline__ int32_t draft_column(int32_t id) const {
    const int32_t column = draft_id_of != nullptr ? draft_id_of[id] : id;
    return column < draft_vocabulary ? column : -1;
  }

  __device__ __forceinline__ float p(int32_t id, float logit) const { return probability(logit, id, p_stats, Exp()); }
  __device__ __forceinline__ float q(int32_t column, float logit) const {
    return column < 0 ? 0.0f : probability(logit, column, q_stats, Exp());
  }

  __device__ __forceinline__ Weights weights(int32_t id) const {
    if (!drawn()) return {p(id, p_logits[id]), 0.0f};
    const int32_t column = draft_column(id);
    return {p(id, p_logits[id]), column < 0 ? 0.0f : q(column, q_logits[column])};
  }

  // The residual of p after the proposal `token` is rejected, not normalised.
  __device__ __forceinline__ float rest(Weights left, int32_t id, int32_t token) const {
    return drawn() ? residual(left.p, left.q) : (id == token ? 0.0f : left.p);
  }

  // The weights of an id after rejections.
  __device__ __forceinline__ Weights left(Weights weights, int32_t id, const Rejection* rejections, int32_t count) const {
    for (int32_t i = 0; i < count; ++i) {
      const Rejection& rejection = rejections[i];
      if (rejection.p_scale > 0.0f) weights.p = rest(weights, id, rejection.token) * rejection.p_scale;
      weights.q = id == rejection.token ? 0.0f : weights.q * rejection.q_scale;
    }
    return weights;
  }

  // A proposal that was not drawn from a distribution has q = 1, as a point mass.
  __device__ __forceinline__ bool accepts(Weights left, int32_t sibling) const {
    const float u = uniform(draw_words(seed, position, Purpose::kAccept, sibling, 0).word[0]);
    return ssd::accepts(u, left.p, drawn() ? left.q : 1.0f);
  }
};

__device__ __forceinline__ Judge judge_of(const VerifyParams& p, int64_t slot, int32_t node, const Tree& tree) {
  const int64_t row = slot * p.nodes + node, half = *p.parity & 1;
  const int32_t address = p.q_address[slot];
  Judge judge{.p_logits = p.p_logits + row * p.vocabulary,
              .p_stats = p.p_stats + row * kStats,
              .q_logits = nullptr,
              .q_stats = nullptr,
              .draft_id_of = p.draft_id_of,
              .draft_vocabulary = p.draft_vocabulary,
              .seed = p.seed[slot],
              .position = p.length[slot] + 1 + tree.depth(node)};
  if (p.q_logits != nullptr && address >= 0 && address < p.addresses) {
    const int64_t q_row = ((slot * 2 + half) * p.addresses + address) * p.q_rows + node;
    judge.q_logits = p.q_logits + q_row * p.draft_vocabulary;
    judge.q_stats = p.q_stats + q_row * kStats;
  }
  return judge;
}

// The workspace: the winners of both races in each slice and, for trees, judgements and rejections.
struct Finish {
  Standing rest;   // winner of the race over the residual of p after the last rejection
  Standing whole;  // winner of the race over p before it, for the case that rounding leaves no residual
};

struct VerifyWorkspace {
  Finish* finishes;       // [slots, slices]
  Rejection* rejections;  // [slots, nodes, nodes]
  Judgement* judgements;  // [slots, nodes]
};

__host__ __device__ inline VerifyWorkspace workspace_of(const VerifyParams& p) {
  Finish* finishes = static_cast<Finish*>(p.workspace);
  auto* rejections = reinterpret_cast<Rejection*>(finishes + static_cast<int64_t>(p.slots) * slices_of(p.vocabulary));
  return {finishes, rejections, reinterpret_cast<Judgement*>(rejections + static_cast<int64_t>(p.slots) * p.nodes * p.nodes)};
}

}  // namespace ssd::cuda
