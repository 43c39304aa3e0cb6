// The order in which a warp processes keys: strips of 16, and passes over each strip.
//
// Rows have different suffixes, and a key must give the same result in a suffix as in the prefix. So the first pass over a
// strip is only for rows whose visible keys in the strip are all paged. Each other row then has a pass of its own: its 16 keys
// are gathered into the same columns of the mma. In a pass for other rows, all keys of a row are masked, which changes no bit
// of its maximum, sum and values.
#pragma once

#include "../common/paging.h"
#include "reduce.cuh"

namespace ssd::cuda {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kStrip = 16;                                   // keys; an mma sums over as many
static_assert(kFineTile % (kAttentionWarps * kStrip) == 0);  // so the index of a key determines its warp

__device__ __forceinline__ int32_t warp_max(int32_t value) {
  return warp_reduce(value, [](int32_t a, int32_t b) { return max(a, b); });
}
__device__ __forceinline__ int32_t warp_min(int32_t value) {
  return warp_reduce(value, [](int32_t a, int32_t b) { return min(a, b); });
}

// The rows of a tile. Lane r holds the values of row r; lanes after the last row hold zeros.
struct TileRows {
  int32_t prefix, length;            // of lane r's row: paged keys, all keys
  int32_t shortest_prefix, longest;  // over all rows: least prefix, largest length

  __device__ __forceinline__ bool sees(int32_t strip) const { return length > strip; }
  // Does the lane's row see keys of the strip, and are all of those paged?
  __device__ __forceinline__ bool shares(int32_t strip) const {
    return sees(strip) && (length <= prefix || prefix >= strip + kStrip);
  }
  // Does every row see all keys of the strip, and are they all paged?
  __device__ __forceinline__ bool all_share(int32_t strip) const { return strip + kStrip <= shortest_prefix; }
};

// A pass over a strip.
struct Pass {
  static constexpr int32_t kSharers = -1;

  int32_t strip;  // its first key
  int32_t row;    // the row that it is for, or kSharers
};

// Iterates over a warp's strips of a split and the passes over each: one for the rows that share the strip, if there are any,
// then one for each other row that sees it. All lanes are at the same pass. advance() begins the first one.
struct Passes : Pass {
  int32_t key_limit;  // first key after the split
  unsigned waiting;   // bit r: row r still needs its own pass over this strip

  __device__ __forceinline__ Passes(int32_t split, int32_t limit, int warp)
      : Pass{split + (warp - kAttentionWarps) * kStrip, kSharers}, key_limit(limit), waiting(0) {}

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
