// Ranks the token of each outcome among the draft's guesses for the outcome's node. csrc/cpu/rank_outcomes.cpp is the simpler
// version.
//
// The rank is the number of entries of one row of logits that come before the token's. Each block counts in a slice of the
// row, and the last block of the slot to arrive adds the counts. Floor: a launch, and one read of the row.
#include "../common/report.h"
#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {
namespace {

struct Memory {
  int32_t counts[kSliceWarps];
  int32_t last;
};

struct Sum {
  __device__ __forceinline__ int32_t operator()(int32_t a, int32_t b) const { return a + b; }
};

// The draft's column of a target id; -1 if the draft lacks it.
__device__ __forceinline__ int32_t draft_column(const RankOutcomesParams& p, int32_t token) {
  if (token < 0 || (p.draft_id_of != nullptr && token >= p.target_vocabulary)) return -1;
  const int32_t column = p.draft_id_of != nullptr ? p.draft_id_of[token] : token;
  return column < p.vocabulary ? column : -1;
}

__global__ void __launch_bounds__(kSliceThreads) rank_outcomes_kernel(RankOutcomesParams p) {
  Memory& memory = *shared_memory<Memory>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Slice slice = this_slice(p.vocabulary);
  const int64_t s = slice.row;
  const int32_t* outcome = p.outcome + (s * 2 + (*p.parity & 1)) * 2;
  const int32_t node = min(outcome[0], p.nodes - 1), token = outcome[1], length = p.spec_len[s];
  int32_t* seen = p.seen + s * kSeenColumns;
  if (node < 0 || p.done[s] != 0 || p.length[s] >= p.draft_context) {
    if (slice.index == 0 && threadIdx.x < kSeenColumns) seen[threadIdx.x] = -1;
    return;
  }
  const int32_t column = draft_column(p, token);
  // An outcome before the end of the speculation cannot continue with the drafted token, so nobody guesses it.
  const bool drafted = node < min(length, p.nodes - 1);
  const int32_t excluded = drafted ? draft_column(p, p.spec_tokens[s * (p.nodes - 1) + node]) : -1;
  int32_t before = 0;
  const float* row = p.logits + (s * p.nodes + node) * p.vocabulary;
  const float value = column >= 0 ? row[column] : -INFINITY;
  const bool guessed = value > -INFINITY;  // NaN and masked tokens are never guessed
  if (guessed) {
    float logits[kColumns];
    load_columns(row, p.vocabulary, slice.first, logits);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int32_t id = slice.first + i;
      const bool ahead = logits[i] > value || (logits[i] == value && id < column);
      before += ahead && id != excluded ? 1 : 0;
    }
  }
  before = block_reduce<kSliceWarps>(before, memory.counts, Sum());
  int32_t* counts = static_cast<int32_t*>(p.workspace) + s * slice.count;
  if (threadIdx.x == 0) counts[slice.index] = before;
  if (!last_to_arrive(p.arrivals + s, slice.count, &memory.last)) return;

  before = 0;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < slice.count; i += kSliceThreads) before += counts[i];
  before = block_reduce<kSliceWarps>(before, memory.counts, Sum());
  if (threadIdx.x != 0) return;
  seen[kSeenHit] = p.hit[s] != 0 ? 1 : 0;
  seen[kSeenSpecLen] = length;
  seen[kSeenNode] = node;
  seen[kSeenRank] = guessed ? before : max(p.vocabulary, p.budget);
}

}  // namespace

size_t rank_outcomes_workspace(const RankOutcomesParams& params) {
  return static_cast<size_t>(params.slots) * static_cast<size_t>(slices_of(params.vocabulary)) * sizeof(int32_t);
}

cudaError_t rank_outcomes(const RankOutcomesParams& params, cudaStream_t stream) {
  return launch<rank_outcomes_kernel>(slice_grid(params.slots, params.vocabulary), dim3(kSliceThreads), sizeof(Memory), stream,
                                      params);
}

}  // namespace ssd::cuda
