// Describes the processed distribution of each row of logits by eight numbers (common/distribution.h).
//
// Most rows need their maximum and one sum. Each slice of a row writes a part, with a sum relative to the slice's own maximum,
// and the last block to arrive adds the parts in order. That takes one read of the logits. A row with top-k, top-p, min-p or
// Saguaro sampling also needs its cuts, which a second kernel finds (row_cuts.cu). The blocks of a row without cuts leave that
// kernel at once. Floor: two launches, and one read of the logits, which are in L2.
#include "row_stats.cuh"

namespace ssd::cuda {
namespace {

struct Part {  // the statistics of a slice
  Standing largest;
  float sum;     // of exp((z - the slice's largest) * scale)
  float lowest;  // least finite value
};

struct Memory {
  Standing standings[kSliceWarps];
  float floats[kSliceWarps];
  int32_t last;
};

__host__ __device__ Part* parts_of(const RowStatsParams& p) { return reinterpret_cast<Part*>(row_bins(p) + p.rows); }

__device__ __forceinline__ float lower(float a, float b) { return fminf(a, b); }

__device__ Part part_of(const Slice& slice, const float (&logits)[kColumns], const Processing& how, Memory& memory) {
  Part part{kNowhere, 0.0f, INFINITY};
#pragma unroll
  for (int i = 0; i < kColumns; ++i) part.largest = Foremost()(part.largest, standing_of_logit(logits[i], slice.first + i));
  part.largest = block_reduce<kSliceWarps>(part.largest, memory.standings, Foremost());
  if (how.scale == 0.0f || part.largest == kNowhere || part.largest == kBad) return part;
  const float largest = value_of(part.largest);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    part.sum += expf((logits[i] - largest) * how.scale);
    if (logits[i] > -INFINITY) part.lowest = fminf(part.lowest, logits[i]);
  }
  part.sum = block_sum<kSliceWarps>(part.sum, memory.floats);
  if (how.cuts()) part.lowest = block_reduce<kSliceWarps>(part.lowest, memory.floats, lower);
  return part;
}

__device__ Part row_of(const Part* parts, int32_t count, const Processing& how, Memory& memory) {
  Part row{kNowhere, 0.0f, INFINITY};
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kSliceThreads) {
    row.largest = Foremost()(row.largest, parts[i].largest);
    row.lowest = fminf(row.lowest, parts[i].lowest);
  }
  row.largest = block_reduce<kSliceWarps>(row.largest, memory.standings, Foremost());
  row.lowest = block_reduce<kSliceWarps>(row.lowest, memory.floats, lower);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kSliceThreads)
    if (parts[i].largest != kNowhere)
      row.sum += parts[i].sum * expf((value_of(parts[i].largest) - value_of(row.largest)) * how.scale);
  row.sum = block_sum<kSliceWarps>(row.sum, memory.floats);
  return row;
}

__global__ void __launch_bounds__(kSliceThreads) row_stats_kernel(RowStatsParams p) {
  Memory& memory = *shared_memory<Memory>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Slice slice = this_slice(p.vocabulary);
  const Processing how = processing_of(p, slice.row);
  const float* logits = p.logits + slice.row * p.vocabulary;
  float mine[kColumns];
  load_columns(logits, p.vocabulary, slice.first, mine);
  const Part part = part_of(slice, mine, how, memory);
  Part* parts = parts_of(p) + slice.row * slice.count;
  if (threadIdx.x == 0) parts[slice.index] = part;
  if (!last_to_arrive(p.arrivals + slice.row, slice.count, &memory.last)) return;

  const Part row = row_of(parts, slice.count, how, memory);
  if (threadIdx.x == 0) {
    const bool bad = row.largest == kNowhere || row.largest == kBad, whole = how.scale != 0.0f && !how.cuts();
    const float largest = value_of(row.largest);
    float* stats = p.stats + slice.row * kStats;
    stats[kMax] = largest;
    stats[kLogSum] = how.scale == 0.0f ? 0.0f : logf(row.sum);
    stats[kCutValue] = whole ? -INFINITY : largest;  // the largest, if row_cuts will find the cuts
    stats[kCutId] = static_cast<float>(whole ? p.vocabulary : column_of(row.largest));
    stats[kTopValue] = INFINITY;
    stats[kTopId] = -1.0f;
    stats[kScale] = how.scale;
    stats[kLogC] = 0.0f;
    for (int i = 0; bad && i < kStats; ++i) stats[i] = __uint_as_float(0x7fc00000u);
  }
  if (!how.cuts()) return;
  RowBins& bins = row_bins(p)[slice.row];
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSliceThreads) {
    bins.weight[i] = 0;
    bins.count[i] = 0;
  }
  if (threadIdx.x == 0) {
    bins.likely = 0;
    bins.lowest = row.lowest;
  }
}

}  // namespace

size_t row_stats_workspace(const RowStatsParams& params) {
  const size_t a_row = sizeof(RowBins) + static_cast<size_t>(slices_of(params.vocabulary)) * sizeof(Part);
  return static_cast<size_t>(params.rows) * a_row;
}

cudaError_t row_stats(const RowStatsParams& params, cudaStream_t stream) {
  const dim3 grid = slice_grid(params.rows, params.vocabulary);
  const cudaError_t error = launch<row_stats_kernel>(grid, dim3(kSliceThreads), sizeof(Memory), stream, params);
  return error == cudaSuccess ? row_cuts(params, stream) : error;
}

}  // namespace ssd::cuda
