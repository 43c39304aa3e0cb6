// Guesses the outcomes of the verification in flight: for each accepted count k, the F_k most likely tokens after it.
//
// Each (slot, k) has a row of logits. Its slices are ranked as `sample` ranks a greedy row. The blocks of a row read from the
// fan-out table how many guesses the row makes and the index of the first. The drafted token is never guessed. It is recognised
// by its target id, so that no search of id_of is needed. Floor: a launch, and one read of the logits, which are in L2.
#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {
namespace {

constexpr Standing kExcluded = kNowhere + 1;  // of the drafted token: after all others

// The guesses of a slot that belong to one k: guess[first] .. guess[first + count - 1].
struct Fan {
  int32_t first, count;
};

// A fan never reaches beyond the budget, whatever the table holds.
__device__ __forceinline__ Fan fan_of(const int32_t* fan_out, int32_t k, int32_t budget) {
  int32_t first = 0, count = 0;
  for (int32_t i = 0; i <= k; ++i) {
    first += count;
    count = min(max(fan_out[i], 0), budget - first);
  }
  return {first, count};
}

__global__ void __launch_bounds__(kSliceThreads) fork_kernel(ForkParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Slice slice = this_slice(p.vocabulary);
  const int32_t width = p.lookahead + 1;
  const int64_t slot = slice.row / width;
  const int32_t k = static_cast<int32_t>(slice.row % width), length = min(max(p.spec_len[slot], 0), p.lookahead);
  const int32_t* fan_out = p.table + (static_cast<int64_t>(p.hit[slot] != 0 ? width : 0) + length) * width;
  int32_t* guess = p.guess + slot * p.budget;
  int32_t* guess_k = p.guess_k + slot * p.budget;
  if (k == length && slice.index == 0) {  // guesses that no fan fills
    const Fan last = fan_of(fan_out, length, p.budget);
    for (int32_t i = last.first + last.count + static_cast<int32_t>(threadIdx.x); i < p.budget; i += kSliceThreads) {
      guess[i] = 0;
      guess_k[i] = kNoGuess;
    }
  }
  const Fan fan = k <= length ? fan_of(fan_out, k, p.budget) : Fan{0, 0};
  if (fan.count == 0) return;

  const int32_t drafted = k < length ? p.spec_tokens[slot * p.lookahead + k] : -1;
  float logits[kColumns];
  load_columns(p.logits + slice.row * p.vocabulary, p.vocabulary, slice.first, logits);
  Standing entries[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int32_t column = slice.first + i;
    const int32_t token = p.id_of != nullptr && column < p.vocabulary ? p.id_of[column] : column;
    entries[i] = standing_of_logit(logits[i], column);
    if (drafted >= 0 && token == drafted && entries[i] != kNowhere && entries[i] != kBad) entries[i] = kExcluded;
  }
  const int64_t left = (slot * p.budget + fan.first) * slice.count;
  bool bad = false;
  rank_row(entries, fan.count, slice, static_cast<Standing*>(p.workspace) + left, p.arrivals + slice.row,
           *shared_memory<RankingMemory>(), [&](int32_t rank, Standing standing) {
             if (rank == 0) bad = standing == kNowhere || standing == kBad;
             const bool found = !bad && standing > kExcluded;
             const int32_t column = found ? column_of(standing) : 0;
             guess[fan.first + rank] = found && p.id_of != nullptr ? p.id_of[column] : column;
             guess_k[fan.first + rank] = found ? k : bad ? kBadGuess : kNoGuess;
           });
}

}  // namespace

size_t fork_workspace(const ForkParams& params) {
  return static_cast<size_t>(params.slots) * static_cast<size_t>(slices_of(params.vocabulary)) *
         static_cast<size_t>(params.budget) * sizeof(Standing);
}

cudaError_t fork(const ForkParams& params, cudaStream_t stream) {
  if (params.budget == 0) return cudaSuccess;
  const int64_t rows = static_cast<int64_t>(params.slots) * (params.lookahead + 1);
  return launch<fork_kernel>(slice_grid(rows, params.vocabulary), dim3(kSliceThreads), sizeof(RankingMemory), stream, params);
}

}  // namespace ssd::cuda
