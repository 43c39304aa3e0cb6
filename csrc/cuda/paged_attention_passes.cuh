// A warp's way through the keys: strips of 16, and passes over them.
//
// Suffixes differ by row, and a key must not weigh differently for being in one. So a strip's first pass, over the paged
// keys, is for those rows alone whose visible keys in it are all paged, and each other row then has a pass to itself over its
// own 16 keys, gathered to the same places of the mma. A row that a pass is not for has only masked keys there: its
// maximum, sum and values stay what they were, to the bit.
#pragma once

#include "../common/paging.h"
#include "reduce.cuh"

namespace ssd::cuda {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kStrip = 16;                                   // keys: as many as a mma sums over
static_assert(kFineTile % (kAttentionWarps * kStrip) == 0);  // then a strip's warp follows from its keys' indices

__device__ __forceinline__ int32_t warp_max(int32_t value) {
  return warp_reduce(value, [](int32_t a, int32_t b) { return max(a, b); });
}
__device__ __forceinline__ int32_t warp_min(int32_t value) {
  return warp_reduce(value, [](int32_t a, int32_t b) { return min(a, b); });
}

// The rows of a tile. Lane r holds what differs by row, of row r; beyond the last row it holds zeros.
struct TileRows {
  int32_t prefix, length;            // paged keys, and all keys
  int32_t shortest_prefix, longest;  // of all rows

  __device__ __forceinline__ bool sees(int32_t strip) const { return length > strip; }
  // Are the keys it sees of the strip all paged?
  __device__ __forceinline__ bool shares(int32_t strip) const {
    return sees(strip) && (length <= prefix || prefix >= strip + kStrip);
  }
  // Does every row see the whole strip, in pages?
  __device__ __forceinline__ bool all_share(int32_t strip) const { return strip + kStrip <= shortest_prefix; }
};

// A warp's way through its strips of a split: at each a pass for the rows that share it, if there are any, then one for each of
// the others that see it. All lanes are at the same pass.
struct Passes {
  static constexpr int32_t kSharers = -1;

  int32_t strip, key_limit;  // the first key of the strip; the first beyond the split
  int32_t row;               // the one the pass is for, or kSharers
  unsigned waiting;          // rows that will have passes of their own at this strip

  __device__ __forceinline__ Passes(int32_t split, int32_t limit, int warp, const TileRows& rows)
      : strip(split + (warp - kAttentionWarps) * kStrip), key_limit(limit), row(kSharers), waiting(0) {
    advance(rows);
  }

  __device__ __forceinline__ bool done() const { return strip >= key_limit; }

  __device__ __forceinline__ void advance(const TileRows& rows) {
    if (waiting == 0) {
      strip += kAttentionWarps * kStrip;
      row = kSharers;
      if (done() || rows.all_share(strip)) return;
      const bool shares = rows.shares(strip);
      waiting = __ballot_sync(kFullMask, rows.sees(strip) && !shares);
      if (__any_sync(kFullMask, shares)) return;
    }
    row = __ffs(static_cast<int>(waiting)) - 1;
    waiting &= waiting - 1;
  }
};

}  // namespace ssd::cuda
