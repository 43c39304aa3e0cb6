// Shared by the two kernels of row_stats: the processing of a row, and the bins that the first prepares for the second.
#pragma once

#include "kernels.h"
#include "vocabulary.cuh"

namespace ssd::cuda {

struct Processing {
  float scale;  // 1 / temperature; 0: greedy
  float top_p, min_p;
  int32_t top_k;
  bool limits_k, limits_p, limits_min, sharpens;

  __device__ __forceinline__ bool cuts() const { return limits_k || limits_p || limits_min || sharpens; }
};

__device__ __forceinline__ Processing processing_of(const RowStatsParams& p, int64_t row) {
  const int64_t slot = row / p.rows_a_slot;
  const float temperature = p.temperature[slot];
  const bool draws = temperature != 0.0f;
  Processing how{draws ? 1.0f / temperature : 0.0f, p.top_p[slot], p.min_p[slot], p.top_k[slot], false, false, false, false};
  how.limits_k = draws && how.top_k > 0 && how.top_k < p.vocabulary;
  how.limits_p = draws && how.top_p < 1.0f;
  how.limits_min = draws && how.min_p > 0.0f;
  how.sharpens = draws && p.saguaro_f > 0 && p.saguaro_c < 1.0f;
  return how;
}

// The entries of a row in bins of equal width, from the largest value to the lowest. A weight is at most 1 and is an integer
// multiple of 2^-40, so that a sum does not depend on the order of addition. 2^24 weights do not overflow.
constexpr int kBins = 1024;
constexpr float kWeightUnit = 0x1p-40f;

struct RowBins {
  unsigned long long weight[kBins];
  unsigned count[kBins];
  unsigned likely;  // entries that min_p keeps
  float lowest;     // least finite value
};

// One for each row, at the start of the workspace.
__host__ __device__ inline RowBins* row_bins(const RowStatsParams& p) { return static_cast<RowBins*>(p.workspace); }

// Launches the second kernel (row_cuts.cu).
cudaError_t row_cuts(const RowStatsParams& params, cudaStream_t stream);

}  // namespace ssd::cuda
