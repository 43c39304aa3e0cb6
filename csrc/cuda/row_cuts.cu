// Finds the cuts of a row for top-k, top-p, min-p and Saguaro sampling: each keeps a prefix of the order (value descending, id
// ascending).
//
// A cut is the first entry at which the number of entries (top-k, min-p, Saguaro's F) or their weight (top-p) reaches a target.
// Each block counts and weighs a slice of the row in bins of equal width, in integers, so that the order of addition changes
// nothing. The last block to arrive finds the bin of a cut from the running totals of the bins, collects the few entries of
// that bin and compares all pairs. If a bin has too many entries (all equal, for example), its range is first cut into bins
// again. The same totals give the log-sum. So no cut needs a sort of the row, and a batch of one still uses many
// multiprocessors. Floor: a launch, and one read of the logits, plus another by a single block for each cut.
#include "row_stats.cuh"

namespace ssd::cuda {
namespace {

constexpr int kThreads = kBins;  // each bin has a thread
constexpr int kWarps = kThreads / kWarp;
constexpr int32_t kSliceEntries = 4 * kThreads;

using Count = unsigned long long;  // a number of entries, or of units of weight

struct Cut {
  Standing last;  // the last kept entry
  Count weight;   // of all entries up to it
};

// The entries of one bin, and the totals before them.
struct Stretch {
  int32_t bin;
  unsigned entries;
  Count target;         // minus the total before
  Count weight_before;  // of all entries before
};

struct Memory {
  Count weight[kBins];  // of bins, later of the collected entries
  unsigned count[kBins];
  Standing entry[kBins];
  Count sums[2][kWarps];
  Standing standings[kWarps];
  Stretch stretch;
  Cut cut;
  unsigned collected, likely;
  int32_t last;
};

struct Row {
  const float* logits;
  int32_t size;
  float largest, scale, bins_per_unit;

  __device__ __forceinline__ Count weight(float value) const {
    const float weight = expf((value - largest) * scale) * (1.0f / kWeightUnit);
    return weight > 0.0f ? static_cast<Count>(weight) : 0;
  }
  __device__ __forceinline__ int32_t bin(float value) const {
    const float bin = (largest - value) * bins_per_unit;
    return bin < static_cast<float>(kBins - 1) ? static_cast<int32_t>(bin) : kBins - 1;
  }
  // Calls visit(value, id) for the entries [begin, end). All threads share them, and each has `batch` loads in flight at a
  // time.
  template <int batch, typename Visit>
  __device__ __forceinline__ void each(int32_t begin, int32_t end, Visit visit) const {
    for (int32_t first = begin + static_cast<int32_t>(threadIdx.x); first < end; first += batch * kThreads) {
      float values[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i) values[i] = first + i * kThreads < end ? logits[first + i * kThreads] : 0.0f;
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (first + i * kThreads < end) visit(values[i], first + i * kThreads);
    }
  }
};

// The sum of the values of all threads up to this one.
__device__ Count running_sum(Count value, Count* sums) {
  const int lane = static_cast<int>(threadIdx.x % kWarp), warp = static_cast<int>(threadIdx.x / kWarp);
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const Count before = __shfl_up_sync(kFullMask, value, distance);
    if (lane >= distance) value += before;
  }
  if (lane == kWarp - 1) sums[warp] = value;
  __syncthreads();
  for (int i = 0; i < warp; ++i) value += sums[i];
  return value;
}

// The bin in which the total reaches the target. Each thread passes the count and weight of one bin. A result without entries
// means that the target is never reached.
__device__ Stretch choose(unsigned count, Count weight, bool by_weight, Count target, Memory& memory) {
  __syncthreads();
  if (threadIdx.x == 0) memory.stretch = {0, 0, 0, 0};
  const Count weights = running_sum(weight, memory.sums[0]), counts = running_sum(count, memory.sums[1]);
  const Count up_to = by_weight ? weights : counts, own = by_weight ? weight : count;
  if (up_to >= target && up_to - own < target)
    memory.stretch = {static_cast<int32_t>(threadIdx.x), count, target - (up_to - own), weights - weight};
  __syncthreads();
  return memory.stretch;
}

struct Range {
  Standing first, last;  // first >= last: an earlier entry has a larger standing
};

// Collects the entries for which inside(value, standing) holds, in any order. If there are more than kBins it returns only
// their range.
template <typename Inside>
__device__ Range collect(const Row& row, unsigned entries, Memory& memory, Inside inside) {
  __syncthreads();
  if (threadIdx.x == 0) memory.collected = 0;
  __syncthreads();
  Range range{kNowhere, kBeforeAll};
  row.each<16>(0, row.size, [&](float value, int32_t id) {
    const Standing standing = standing_of(value, id);
    if (!inside(value, standing)) return;
    if (entries <= kBins) {
      const unsigned place = atomicAdd(&memory.collected, 1u);
      memory.entry[place] = standing;
      memory.weight[place] = row.weight(value);
    } else {
      range = {max(range.first, standing), min(range.last, standing)};
    }
  });
  __syncthreads();
  if (entries <= kBins) return range;
  range.first = block_reduce<kWarps>(range.first, memory.standings, Foremost());
  range.last = block_reduce<kWarps>(range.last, memory.standings, [](Standing a, Standing b) { return min(a, b); });
  return range;
}

__device__ __forceinline__ void add(int32_t bin, Count weight, Memory& memory) {
  atomicAdd(&memory.count[bin], 1u);
  if (weight > 0) atomicAdd(&memory.weight[bin], weight);  // masked entries are all in the last bin and would serialise there
}

// Cuts a range of too many entries into bins, and collects the entries of the bin in which the total reaches the target.
__device__ Range narrow(const Row& row, const Range& range, bool by_weight, Stretch& stretch, Memory& memory) {
  int shift = 0;
  while ((range.first - range.last) >> shift >= kBins) ++shift;
  memory.weight[threadIdx.x] = 0;
  memory.count[threadIdx.x] = 0;
  __syncthreads();
  row.each<16>(0, row.size, [&](float value, int32_t id) {
    const Standing standing = standing_of(value, id);
    if (standing > range.first || standing < range.last) return;
    add(static_cast<int32_t>((range.first - standing) >> shift), row.weight(value), memory);
  });
  __syncthreads();
  const Count before = stretch.weight_before;
  stretch = choose(memory.count[threadIdx.x], memory.weight[threadIdx.x], by_weight, stretch.target, memory);
  stretch.weight_before += before;
  const Standing first = range.first - (static_cast<Standing>(stretch.bin) << shift);
  return collect(row, stretch.entries, memory, [&](float, Standing standing) {
    return standing <= first && (first - standing) >> shift == 0 && standing >= range.last;
  });
}

// The entry at which the running count or weight reaches the target, which is at least 1. It is the first entry if it never
// does.
__device__ Cut find_cut(const Row& row, const RowBins& bins, bool by_weight, Count target, Standing largest, Memory& memory) {
  Stretch stretch = choose(bins.count[threadIdx.x], bins.weight[threadIdx.x], by_weight, target, memory);
  Range range = collect(row, stretch.entries, memory, [&](float value, Standing) { return row.bin(value) == stretch.bin; });
  while (stretch.entries > kBins) range = narrow(row, range, by_weight, stretch, memory);
  if (threadIdx.x == 0) memory.cut = {largest, row.weight(value_of(largest))};
  __syncthreads();
  if (threadIdx.x < stretch.entries) {
    const Standing own = memory.entry[threadIdx.x];
    const Count own_weight = memory.weight[threadIdx.x];
    Count count = 0, weight = 0;
    for (unsigned i = 0; i < stretch.entries; ++i) {
      const bool up_to = memory.entry[i] >= own;
      count += up_to ? 1 : 0;
      weight += up_to ? memory.weight[i] : 0;
    }
    const Count reached = by_weight ? weight : count;
    if (reached >= stretch.target && reached - (by_weight ? own_weight : 1) < stretch.target)
      memory.cut = {own, stretch.weight_before + weight};
  }
  __syncthreads();
  return memory.cut;
}

// The least integer weight that is at least `share` of `all`.
__device__ Count share_of(float share, Count all) {
  const double enough = static_cast<double>(share) * static_cast<double>(all);
  const auto below = static_cast<Count>(enough);
  return max(Count{1}, min(all, below + (static_cast<double>(below) < enough ? 1 : 0)));
}

__device__ void count_slice(const Row& row, const Processing& how, int32_t begin, RowBins& bins, Memory& memory) {
  memory.weight[threadIdx.x] = 0;
  memory.count[threadIdx.x] = 0;
  if (threadIdx.x == 0) memory.likely = 0;
  __syncthreads();
  const float bound = logf(how.min_p);
  unsigned likely = 0;
  row.each<kSliceEntries / kThreads>(begin, min(row.size, begin + kSliceEntries), [&](float value, int32_t) {
    add(row.bin(value), row.weight(value), memory);
    if ((value - row.largest) * row.scale >= bound) ++likely;
  });
  if (likely > 0) atomicAdd(&memory.likely, likely);
  __syncthreads();
  if (memory.count[threadIdx.x] > 0) {
    atomicAdd(&bins.count[threadIdx.x], memory.count[threadIdx.x]);
    atomicAdd(&bins.weight[threadIdx.x], memory.weight[threadIdx.x]);
  }
  if (threadIdx.x == 0) atomicAdd(&bins.likely, memory.likely);
}

__global__ void __launch_bounds__(kThreads) row_cuts_kernel(RowStatsParams p) {
  Memory& memory = *shared_memory<Memory>();
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t slices = (p.vocabulary - 1) / kSliceEntries + 1;
  const int64_t r = blockIdx.x / static_cast<unsigned>(slices);
  const Processing how = processing_of(p, r);
  float* stats = p.stats + r * kStats;
  if (!how.cuts() || is_bad(stats)) return;
  RowBins& bins = row_bins(p)[r];
  const float range = stats[kMax] - bins.lowest;
  const Row row{p.logits + r * p.vocabulary, p.vocabulary, stats[kMax], how.scale, static_cast<float>(kBins) / range};
  const auto begin = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(slices)) * kSliceEntries;
  count_slice(row, how, begin, bins, memory);
  if (!last_to_arrive(p.arrivals + r, slices, &memory.last)) return;

  const Standing largest = standing_of(row.largest, static_cast<int32_t>(stats[kCutId]));
  const Count all = block_reduce<kWarps>(bins.weight[threadIdx.x], memory.sums[0], [](Count a, Count b) { return a + b; });
  Cut kept{standing_of(-INFINITY, row.size), all};
  if (how.limits_k) kept = find_cut(row, bins, false, static_cast<Count>(how.top_k), largest, memory);
  if (how.limits_p) kept = find_cut(row, bins, true, share_of(how.top_p, kept.weight), largest, memory);
  if (how.limits_min) {
    const Cut likely = find_cut(row, bins, false, max(bins.likely, 1u), largest, memory);
    if (likely.last > kept.last) kept = likely;
  }
  Cut top{kBeforeAll, 0};
  if (how.sharpens) top = find_cut(row, bins, false, static_cast<Count>(min(p.saguaro_f, row.size)), largest, memory);
  if (threadIdx.x != 0) return;
  const Count sharpened = top.last > kept.last ? top.weight : kept.weight;
  const double sum =
      static_cast<double>(kept.weight - sharpened) + static_cast<double>(p.saguaro_c) * static_cast<double>(sharpened);
  stats[kLogSum] = logf(static_cast<float>(sum * static_cast<double>(kWeightUnit)));
  stats[kCutValue] = value_of(kept.last);
  stats[kCutId] = static_cast<float>(column_of(kept.last));
  if (!how.sharpens) return;
  stats[kTopValue] = value_of(top.last);
  stats[kTopId] = static_cast<float>(column_of(top.last));
  stats[kLogC] = logf(p.saguaro_c);
}

}  // namespace

cudaError_t row_cuts(const RowStatsParams& params, cudaStream_t stream) {
  const int64_t slices = (params.vocabulary - 1) / kSliceEntries + 1;
  return launch<row_cuts_kernel>(dim3(static_cast<unsigned>(params.rows * slices)), dim3(kThreads), sizeof(Memory), stream,
                                 params);
}

}  // namespace ssd::cuda
