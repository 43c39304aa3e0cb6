// Rows as wide as the vocabulary: how they are cut into slices for blocks, and how their entries are ranked.
//
// A block takes one slice. Each of its threads takes four neighbouring columns, because one Philox call gives four words.
// Slices are small, because a decode has few rows, and one row of 128,000 columns should already fill a GPU. A block writes the
// result of its slice to the workspace, and the last block of the row to arrive combines the results in the order of the
// slices. So a result does not depend on the order in which blocks arrive. Loads are of single floats, because a row need not
// begin at a multiple of 16 bytes.
#pragma once

#include "../common/distribution.h"
#include "../common/philox.h"
#include "arrivals.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace ssd::cuda {

constexpr int kSliceThreads = 256;
constexpr int kSliceWarps = kSliceThreads / kWarp;
constexpr int kColumns = 4;  // of a thread
constexpr int kSliceColumns = kColumns * kSliceThreads;

// A row without columns has one slice, so that a block writes its result.
__host__ __device__ constexpr int32_t slices_of(int32_t columns) {
  return columns <= kSliceColumns ? 1 : (columns - 1) / kSliceColumns + 1;
}

// The work of a block in a grid over (row, slice).
struct Slice {
  int64_t row;
  int32_t index, count;  // of this slice; of all slices of the row
  int32_t first;         // this thread's first column
};

__device__ __forceinline__ Slice this_slice(int32_t columns) {
  const int32_t count = slices_of(columns), index = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(count));
  return {static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(count)), index, count,
          index * kSliceColumns + static_cast<int32_t>(threadIdx.x) * kColumns};
}

inline dim3 slice_grid(int64_t rows, int32_t columns) { return dim3(static_cast<unsigned>(rows * slices_of(columns))); }

// Columns after the end of the row are -inf, like masked ones: they have no probability and never win.
__device__ __forceinline__ void load_columns(const float* row, int32_t columns, int32_t first, float (&values)[kColumns]) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) values[i] = first + i < columns ? row[first + i] : -INFINITY;
}

// The standing of an entry in the order (value descending, id ascending), as one number: of two entries, the one with the
// larger number comes first. No number has the standing of kNowhere, kBad or kBeforeAll.
using Standing = unsigned long long;
constexpr Standing kNowhere = 0;
constexpr Standing kBeforeAll = ~0ull;
constexpr Standing kBad = kBeforeAll - 1;  // of NaN and +inf among logits

__device__ __forceinline__ Standing standing_of(float value, int32_t id) {
  const unsigned bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // -0 equals 0
  const unsigned ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Standing>(ascending) << 32 | ~static_cast<unsigned>(id);
}

// The standing of a logit. A masked one has none. One that spoils its row comes first, so the first entry tells of it.
__device__ __forceinline__ Standing standing_of_logit(float z, int32_t id) {
  return spoils_its_row(z) ? kBad : z > -INFINITY ? standing_of(z, id) : kNowhere;
}

__device__ __forceinline__ float value_of(Standing standing) {
  const auto ascending = static_cast<unsigned>(standing >> 32);
  return __uint_as_float((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu : ~ascending);
}

__device__ __forceinline__ int32_t column_of(Standing standing) {
  return static_cast<int32_t>(~static_cast<unsigned>(standing));
}

struct Foremost {
  __device__ __forceinline__ Standing operator()(Standing a, Standing b) const { return a > b ? a : b; }
};

struct Exp {
  __device__ __forceinline__ float operator()(float x) const { return expf(x); }
};

// The standing of an entry in an exponential race, in which the earliest comes first. It is kNowhere without weight or with an
// infinite time.
__device__ __forceinline__ Standing racer(uint32_t word, float weight, int32_t id) {
  const float time = race_time(race_uniform(word), weight);
  return weight > 0.0f && time < INFINITY ? standing_of(-time, id) : kNowhere;
}

struct RankingMemory {
  Standing heads[2][kSliceWarps];
  int32_t last;
};

// Ranks the first `count` entries of the block: thread 0 calls give(rank, standing), from rank 0 on, with kNowhere when there
// are no more. next_after(standing) returns the first of the thread's own entries after that one, or kNowhere. Every thread
// offers its first entry; the thread whose entry is taken offers its next. So a rank costs one reduction, however many entries
// a thread has.
template <typename NextAfter, typename Give>
__device__ __forceinline__ void rank_block(int32_t count, RankingMemory& memory, NextAfter next_after, Give give) {
  Standing mine = next_after(kBeforeAll);
  for (int32_t rank = 0; rank < count; ++rank) {
    Standing(&heads)[kSliceWarps] = memory.heads[rank % 2];  // in turns, so that one barrier for each rank is enough
    const Standing of_warp = warp_reduce(mine, Foremost());
    if (threadIdx.x % kWarp == 0) heads[threadIdx.x / kWarp] = of_warp;
    __syncthreads();
    Standing head = heads[0];
#pragma unroll
    for (int warp = 1; warp < kSliceWarps; ++warp) head = Foremost()(head, heads[warp]);
    if (threadIdx.x == 0) give(rank, head);
    if (mine == head && head != kNowhere) mine = next_after(head);
  }
}

// Ranks the first `count` entries of a row. The blocks of all its slices call this, and the last to arrive calls give(rank,
// standing) as above. entries: those of this thread. left: [slices, min(count, kSliceColumns)], the ranked entries of each
// slice.
template <typename Give>
__device__ __forceinline__ void rank_row(const Standing (&entries)[kColumns], int32_t count, const Slice& slice, Standing* left,
                                         int32_t* arrivals, RankingMemory& memory, Give give) {
  const int32_t kept = min(count, kSliceColumns);
  Standing* mine = left + static_cast<int64_t>(slice.index) * kept;
  const auto next_here = [&](Standing last) {
    Standing next = kNowhere;
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      if (entries[i] < last) next = Foremost()(next, entries[i]);
    return next;
  };
  rank_block(kept, memory, next_here, [&](int32_t rank, Standing standing) { mine[rank] = standing; });
  if (!last_to_arrive(arrivals, slice.count, &memory.last)) return;
  const int32_t candidates = slice.count * kept;
  const auto next_left = [&](Standing last) {
    Standing next = kNowhere;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < candidates; i += kSliceThreads)
      if (left[i] < last) next = Foremost()(next, left[i]);
    return next;
  };
  rank_block(count, memory, next_left, give);
}

}  // namespace ssd::cuda
