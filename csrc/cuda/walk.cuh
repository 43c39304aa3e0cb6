// One slot's proposals and the arithmetic of judging them: what csrc/cpu/verify.cpp keeps as vectors over the vocabulary, worked
// out for one id at a time. A proposal that was rejected is remembered as its token and two scales, and what it and others have
// left of p and q follows from p and q themselves in a few operations, in whatever block it is needed.
#pragma once

#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {

constexpr int32_t kMaxNodes = 64;
constexpr int32_t kNone = 0;  // no node's child: node 0 is the root

// A slot's nodes, in shared memory; a chain is the tree with one child a node.
struct Tree {
  int32_t present;  // proposals: nodes 1 .. present
  int32_t token[kMaxNodes], parent[kMaxNodes];

  // The child of `node` behind `child` (behind the node itself: its first), or kNone. Empty places are nobody's children.
  __device__ __forceinline__ int32_t next_child(int32_t node, int32_t child) const {
    for (++child; child <= present; ++child)
      if (parent[child] == node && token[child] >= 0) return child;
    return kNone;
  }

  // Tokens between the root's and the one that is decided at `node`. Bounded, whatever the table says.
  __device__ __forceinline__ int32_t depth(int32_t node) const {
    int32_t depth = 0;
    for (; node > 0 && depth < kMaxNodes; node = parent[node]) ++depth;
    return depth;
  }
};

// By all threads of a block. What is outside the vocabulary counts as an empty place: the host cannot look at tokens.
__device__ __forceinline__ void load_tree(const VerifyParams& p, int64_t slot, Tree& tree) {
  const int32_t present = min(max(p.spec_len[slot], 0), p.nodes - 1);
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i == 0) tree.present = present;
  if (i >= 1 && i <= present) {
    const int32_t token = p.spec_tokens[slot * (p.nodes - 1) + i - 1];
    tree.token[i] = token < p.vocabulary ? token : -1;
    const int32_t parent = p.parent != nullptr ? p.parent[slot * p.nodes + i] : i - 1;
    tree.parent[i] = parent < i ? parent : -1;
  }
  __syncthreads();
}

// A rejected proposal. The scales make what is left sum to 1 again; p_scale 0: rounding left nothing of p, and it stays.
struct Rejection {
  int32_t token;
  float p_scale, q_scale;
};

struct Judgement {
  int32_t accepted;  // the node's child, or kNone
  int32_t rejected;  // children before it
};

struct Weights {  // of one id
  float p, q;
};

// What the children of one node are judged by.
struct Judge {
  const float *p_logits, *p_stats;  // [vocabulary], [kStats]
  const float *q_logits, *q_stats;  // [draft_vocabulary], [kStats]; null: the proposals were not drawn
  const int32_t* draft_id_of;       // [vocabulary] or null
  int32_t draft_vocabulary;
  int64_t seed;
  int32_t position;  // of the token that is decided here

  __device__ __forceinline__ bool greedy() const { return is_greedy(p_stats); }
  __device__ __forceinline__ bool drawn() const { return q_logits != nullptr; }

  // The draft's column, or -1.
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

  // p without what the proposal `token` was drawn from: not normalised.
  __device__ __forceinline__ float rest(Weights left, int32_t id, int32_t token) const {
    return drawn() ? residual(left.p, left.q) : (id == token ? 0.0f : left.p);
  }

  // What rejections leave of an id's weights.
  __device__ __forceinline__ Weights left(Weights weights, int32_t id, const Rejection* rejections, int32_t count) const {
    for (int32_t i = 0; i < count; ++i) {
      const Rejection& rejection = rejections[i];
      if (rejection.p_scale > 0.0f) weights.p = rest(weights, id, rejection.token) * rejection.p_scale;
      weights.q = id == rejection.token ? 0.0f : weights.q * rejection.q_scale;
    }
    return weights;
  }

  // A proposal that was not drawn has q = 1: it is a point mass.
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

// Workspace, slot first: a slice's foremost of two races; where there are trees, judgements and rejections too.
struct Finish {
  Standing rest;   // of the race over what the last rejection left of p
  Standing whole;  // of the race over p as it was before, for when rounding left nothing
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
