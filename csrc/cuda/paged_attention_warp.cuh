// The work of one warp of paged_attention: it copies its strips of a split to shared memory and computes its own softmax over
// them.
#pragma once

#include <climits>
#include <cstring>

#include "paged_attention_passes.cuh"
#include "paged_attention_schedule.cuh"

namespace ssd::cuda {

constexpr int kCopyElements = 8;  // of a cp.async

template <int head_dim>
struct AttentionShared {
  static constexpr int kStages = head_dim > 128 ? 1 : head_dim > 80 ? 2 : 3;
  static constexpr int kPitch = head_dim + kCopyElements;  // elements; eight rows, 16 bytes of each, use different banks

  struct Strip {
    alignas(16) uint16_t keys[kStrip][kPitch];
    alignas(16) uint16_t values[kStrip][kPitch];
  };
  union Warp {
    Strip ring[kStages];
    float values[kMmaRows][kPitch];  // at the end of a split: the warp's result, not divided by the sum
  };

  Warp warp[kAttentionWarps];
  float2 softmax[kAttentionWarps][kMmaRows];  // maximum and sum of each warp's result
  alignas(16) uint16_t queries[kMmaRows][kPitch];
  alignas(16) float section_values[kMmaRows][head_dim];  // merged splits of the section so far
  float2 section_softmax[kMmaRows];
  Schedule schedule;
  int32_t is_last;
};

// The value to subtract from scores whose largest is `maximum`. It is never -inf, because -inf - -inf is NaN.
__device__ __forceinline__ float offset_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// Two neighbouring elements of an operand of mma.
__device__ __forceinline__ uint32_t word_of(float low, float high) {
  const auto pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

template <int head_dim>
class AttentionWarp {
 public:
  using Shared = AttentionShared<head_dim>;

  __device__ __forceinline__ AttentionWarp(const PagedAttentionParams& p, Shared& shared)
      : p_(p),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        group_(p.query_heads / p.kv_heads),
        scale_(p.scale * 1.44269504f) {}  // times log2(e), so that exp2 computes e^x

  // Reads the rows of the tile and starts the copy of their queries. Returns the number of keys of the longest row.
  __device__ __forceinline__ int32_t begin(const Item& item) {
    first_row_ = item.first_row;
    kv_head_ = item.kv_head;
    queries_ = item.rows * group_;
    const bool has_row = lane_ < item.rows;
    rows_.prefix = has_row ? p_.prefix_len[first_row_ + lane_] : 0;
    rows_.length = has_row ? visible_keys(p_, first_row_ + lane_) : 0;
    rows_.longest = warp_max(rows_.length);
    rows_.shortest_prefix = warp_min(has_row ? rows_.prefix : INT_MAX);
    pages_ = p_.page_table + static_cast<int64_t>(shared_.schedule.sequence[first_row_]) * p_.table_width;

#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kMmaRows * kPieces; i += kAttentionThreads) {
      const int q = i / kPieces, column = i % kPieces * kCopyElements;
      const int64_t row = first_row_ + q / group_, head = kv_head_ * group_ + q % group_;
      const uint16_t* from = static_cast<const uint16_t*>(p_.q);
      const bool exists = q < queries_;
      cp_async(&shared_.queries[q][column], exists ? from + row * p_.q_stride + head * head_dim + column : from, exists);
    }
    cp_async_commit();
    return rows_.longest;
  }

  // Processes the keys of a split, up to key_limit. All warps of the block call this. The result of a warp is then in shared
  // memory, which other warps may read after the next barrier.
  __device__ __forceinline__ void attend_split(int32_t split, int32_t key_limit) {
    auto& ring = shared_.warp[warp_].ring;
    Passes next(split, key_limit, warp_);  // the next pass to copy; the KV slots of its keys are known
    int32_t slot = -1;
    Pass copied[kStages] = {};  // the passes in the ring, the oldest first
    Sums sums;
    clear(sums);
    // Turn t multiplies pass t - kStages, copies pass t and finds the keys of pass t + 1. One loop does it all, to keep the code
    // small: the kernels of a layer drive each other out of the instruction caches.
#pragma unroll 1
    for (int turn = -1, stage = kStages - 1;; ++turn, stage = stage + 1 == kStages ? 0 : stage + 1) {
      if (turn == kStages) {
        cp_async_wait<kStages>();
        __syncthreads();  // all queries are in shared memory
      }
      if (turn >= kStages) {
        if (copied[0].strip >= key_limit) break;
        cp_async_wait<kStages - 1>();
        __syncwarp();
        attend(ring[stage], copied[0], sums);
        __syncwarp();
      }
      if (turn >= 0) {
#pragma unroll
        for (int i = 1; i < kStages; ++i) copied[i - 1] = copied[i];
        copied[kStages - 1] = next;
        if (!next.done()) copy_strip(ring[stage], slot);
        cp_async_commit();
      }
      if (!next.done()) {
        next.advance(rows_);
        if (!next.done()) slot = find_key(next);
      }
    }
    leave(sums);
  }

 private:
  static constexpr int kStages = Shared::kStages;
  static constexpr int kPieces = head_dim / kCopyElements;  // of a key
  static constexpr int kColumnTiles = head_dim / 8;         // of a mma's result

  struct Sums {  // of the warp's keys so far; a lane has a share of two queries
    float values[kColumnTiles][4];
    float maximum[2];
    float sum[2];  // over the keys of this lane
  };

  // The first or second query of this lane.
  __device__ __forceinline__ int query(int half) const { return half * 8 + lane_ / 4; }

  __device__ __forceinline__ static void clear(Sums& sums) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.values[n][i] = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums.maximum[half] = -INFINITY;
      sums.sum[half] = 0.0f;
    }
  }

  // The KV slot of the lane's key in a pass, or -1 if the pass does not need the key. Lanes l and l + 16 have the same key.
  __device__ __forceinline__ int32_t find_key(const Pass& pass) const {
    const int32_t key = pass.strip + lane_ % kStrip;
    int32_t prefix = INT_MAX, length = INT_MAX;
    if (pass.row != Pass::kSharers) {
      prefix = __shfl_sync(kFullMask, rows_.prefix, pass.row);
      length = __shfl_sync(kFullMask, rows_.length, pass.row);
    } else if (!rows_.all_share(pass.strip)) {
      length = warp_max(rows_.shares(pass.strip) ? rows_.length : 0);
    }
    if (key >= length) return -1;
    if (key < prefix) return static_cast<int32_t>(kv_slot(pages_, key, p_.page_size));
    return p_.suffix_slots[static_cast<int64_t>(first_row_ + pass.row) * p_.suffix_width + key - prefix];
  }

  // Keys that the pass does not need become zeros: unused KV slots may hold NaN, and 0 * NaN is not 0.
  __device__ __forceinline__ void copy_strip(typename Shared::Strip& strip, int32_t slot) const {
    const uint16_t* keys = static_cast<const uint16_t*>(p_.k_cache) + kv_head_ * head_dim;
    const uint16_t* values = static_cast<const uint16_t*>(p_.v_cache) + kv_head_ * head_dim;
#pragma unroll 4  // more would take registers that the sums need
    for (int i = 0; i < kStrip * kPieces / kWarp; ++i) {
      const int piece = i * kWarp + lane_, key = piece / kPieces, column = piece % kPieces * kCopyElements;
      const int32_t from = __shfl_sync(kFullMask, slot, key);
      const int64_t at = static_cast<int64_t>(max(from, 0)) * p_.kv_heads * head_dim + column;
      cp_async(&strip.keys[key][column], keys + at, from >= 0);
      cp_async(&strip.values[key][column], values + at, from >= 0);
    }
  }

  // Adds the 16 keys of a pass to the sums of all queries of the tile.
  __device__ __forceinline__ void attend(const typename Shared::Strip& strip, const Pass& pass, Sums& sums) const {
    float scores[2][4] = {};  // 16 queries x 8 keys each
#pragma unroll
    for (int k = 0; k < head_dim; k += 16) {
      uint32_t key[4], query[4];
      ldmatrix(key, &strip.keys[lane_ / 16 * 8 + lane_ % 8][k + lane_ / 8 % 2 * 8]);
      ldmatrix(query, &shared_.queries[lane_ % 16][k + lane_ / 16 * 8]);
      mma(scores[0], query, {key[0], key[1]});
      mma(scores[1], query, {key[2], key[3]});
    }

    int32_t seen[2] = {kStrip, kStrip};  // keys of the strip that each of the lane's queries sees
    if (pass.row != Pass::kSharers || !rows_.all_share(pass.strip)) {
      const bool takes_part = pass.row == Pass::kSharers ? rows_.shares(pass.strip) : pass.row == lane_;  // the lane's row
      const int32_t seen_of_row = takes_part ? rows_.length - pass.strip : 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) seen[half] = __shfl_sync(kFullMask, seen_of_row, query(half) / group_);
    }
    uint32_t weights[4];
    weigh(scores, seen, sums, weights);

#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t value[4];
      ldmatrix_transposed(value, &strip.values[lane_ % 16][n * 8 + lane_ / 16 * 8]);
      mma(sums.values[n], weights, {value[0], value[1]});
      mma(sums.values[n + 1], weights, {value[2], value[3]});
    }
  }

  // Turns scores into weights, relative to the largest score so far, and brings the earlier sums to the same scale.
  __device__ __forceinline__ void weigh(const float (&scores)[2][4], const int32_t (&seen)[2], Sums& sums,
                                        uint32_t (&weights)[4]) const {
    float change[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float score[4];  // at keys 2t, 2t + 1, 2t + 8, 2t + 9 with t = lane % 4
#pragma unroll
      for (int i = 0; i < 4; ++i)
        score[i] = i / 2 * 8 + lane_ % 4 * 2 + i % 2 < seen[half] ? scores[i / 2][2 * half + i % 2] : -INFINITY;
      float largest = fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3]));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
      const float maximum = fmaxf(sums.maximum[half], largest * scale_), offset = offset_of(maximum);
      change[half] = exp2_approx(sums.maximum[half] - offset);
      sums.maximum[half] = maximum;
#pragma unroll
      for (int i = 0; i < 4; ++i) score[i] = exp2_approx(fmaf(score[i], scale_, -offset));
      sums.sum[half] = fmaf(sums.sum[half], change[half], (score[0] + score[1]) + (score[2] + score[3]));
      weights[half] = word_of(score[0], score[1]);
      weights[2 + half] = word_of(score[2], score[3]);
    }
    if (__any_sync(kFullMask, change[0] != 1.0f || change[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.values[n][i] *= change[i / 2];
    }
  }

  // Writes the result to the shared memory of the ring.
  __device__ __forceinline__ void leave(const Sums& sums) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums.sum[half];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      if (query(half) >= queries_) continue;
      if (lane_ % 4 == 0) shared_.softmax[warp_][query(half)] = make_float2(sums.maximum[half], sum);
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
        reinterpret_cast<float2&>(shared_.warp[warp_].values[query(half)][n * 8 + lane_ % 4 * 2]) =
            make_float2(sums.values[n][half * 2], sums.values[n][half * 2 + 1]);
    }
  }

  const PagedAttentionParams& p_;
  Shared& shared_;
  const int lane_, warp_, group_;
  const float scale_;

  // The tile that begin() was called for.
  int32_t first_row_, kv_head_;
  int queries_;
  TileRows rows_;
  const int32_t* pages_;
};

}  // namespace ssd::cuda
