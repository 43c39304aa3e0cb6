// Draws m tokens for each row without replacement, by an exponential race: the m earliest entries are the tokens, in drawn
// order (Gumbel top-m). For a greedy row they are the m largest logits.
//
// Each entry needs an exp, a logarithm and a quarter of a Philox call. For a whole row that would take one block some
// microseconds; cut into slices it takes less than one. Each slice keeps its m earliest, because all m of a row may be in one
// slice. The blocks also keep the logits that they read, and their statistics, where they are wanted. Floor: a launch, and one
// read of the logits, which are in L2.
#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {
namespace {

// Writes the thread's logits, and one of the row's statistics, to their places in q.
__device__ __forceinline__ void keep(const SampleParams& p, const Slice& slice, int64_t slot, int64_t of_slot,
                                     const float (&logits)[kColumns], const float* stats) {
  const int64_t half = (*p.parity & 1) ^ (p.next_half ? 1 : 0);
  const auto row_of = [&](float* q, const int64_t (&strides)[3]) {
    return q + slot * strides[0] + half * strides[1] + of_slot * strides[2];
  };
  float* row = row_of(p.q_logits, p.q_logits_strides);
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    if (slice.first + i < p.vocabulary) row[slice.first + i] = logits[i];
  if (slice.index == 0 && threadIdx.x < kStats) row_of(p.q_stats, p.q_stats_strides)[threadIdx.x] = stats[threadIdx.x];
}

// Ends the speculation of a bad row. Rows of the same slot may run this at the same time, and then write the same.
__device__ void end_speculation(const SampleParams& p, int64_t slot) {
  if (p.spec_len[slot] <= p.drafted) return;
  p.bad[slot] = 1;
  if (p.rows_a_slot == 1) p.spec_len[slot] = p.drafted;
}

__global__ void __launch_bounds__(kSliceThreads) sample_kernel(SampleParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Slice slice = this_slice(p.vocabulary);
  const float* stats = p.stats + slice.row * kStats;
  float logits[kColumns];
  load_columns(p.logits + slice.row * p.vocabulary, p.vocabulary, slice.first, logits);
  const int64_t slot = slice.row / p.rows_a_slot, of_slot = slice.row % p.rows_a_slot;
  if (p.q_logits != nullptr) keep(p, slice, slot, of_slot, logits, stats);
  if (p.missed != nullptr && p.missed[slot] == 0) return;
  Standing entries[kColumns];
  if (is_greedy(stats)) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) entries[i] = standing_of_logit(logits[i], slice.first + i);
  } else {
    const Philox4 words =
        draw_words(p.seed[slot], p.position[slice.row * p.position_stride] + 1, Purpose::kDraft, 0, slice.first / kColumns);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      entries[i] = racer(words.word[i], probability(logits[i], slice.first + i, stats, Exp()), slice.first + i);
  }
  int32_t* tokens = p.tokens + slot * p.tokens_strides[0] + of_slot * p.m * p.tokens_strides[1];
  const int64_t left = slice.row * slice.count * min(p.m, kSliceColumns);
  rank_row(entries, p.m, slice, static_cast<Standing*>(p.workspace) + left, p.arrivals + slice.row,
           *shared_memory<RankingMemory>(), [&](int32_t rank, Standing standing) {
             const bool found = standing != kNowhere;
             const int32_t column = found ? column_of(standing) : 0;
             const int32_t token = p.id_of != nullptr ? p.id_of[column] : column;
             tokens[rank * p.tokens_strides[1]] = found ? token : kNoToken;
             if (!found && rank == 0 && p.spec_len != nullptr) end_speculation(p, slot);
           });
}

}  // namespace

size_t sample_workspace(const SampleParams& params) {
  const size_t kept = static_cast<size_t>(params.m < kSliceColumns ? params.m : kSliceColumns);
  return static_cast<size_t>(params.rows) * static_cast<size_t>(slices_of(params.vocabulary)) * kept * sizeof(Standing);
}

cudaError_t sample(const SampleParams& params, cudaStream_t stream) {
  return launch<sample_kernel>(slice_grid(params.rows, params.vocabulary), dim3(kSliceThreads), sizeof(RankingMemory), stream,
                               params);
}

}  // namespace ssd::cuda
