// Attention of rows over paged keys and an explicit suffix. One kernel serves decode, verification of chains and trees,
// branches and prefill. Floor: the K/V bytes of the sequences, read once / memory bandwidth.
//
// A block computes one part of the keys of one tile of rows, for one K/V head (paged_attention_schedule.cuh). All rows of the
// tile and all query heads of the group are queries of the same mma, so they share the reads of K/V. Keys come in strips of 16,
// which the warps take in turn. A warp copies its strips through its own ring of buffers and has its own softmax
// (paged_attention_warp.cuh), so there is no barrier before the end of a split. Then the results of the warps are merged
// (paged_attention_merge.cuh).
//
// Row invariance: the index of a key alone determines its strip, warp, split and section, and partial results are merged in
// that order. So no bit of a row depends on the other rows of the tile, on the position of its keys in memory, or on the block
// that computes it.
//
// Versions, on an H100: µs of a pass of 24 branch rows over 512 keys, of Qwen3-0.6B, Llama-3.2-1B and Llama-3.1-8B:
//   tiles of 16 or 32 queries, as many as there are           1916   1857   7126
//   fewer rows in a tile while blocks are idle; merges of
//   several queries overlap; a third less code                1404   1436   7375
//   no tiles of 32 queries                                    1400   1451   6308
#pragma once

#include "launch.h"
#include "paged_attention_merge.cuh"
#include "paged_attention_schedule.cuh"
#include "paged_attention_warp.cuh"

namespace ssd::cuda {

template <int head_dim>
__global__ void __launch_bounds__(kAttentionThreads, 2) paged_attention_kernel(AttentionLaunch launch) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  auto& shared = *shared_memory<AttentionShared<head_dim>>();
  if (threadIdx.x < kWarp) {
    make_schedule(launch, shared.schedule);
  } else if (threadIdx.x < 2 * kWarp) {
    read_pages_ahead(launch.params);
  }
  __syncthreads();
  AttentionWarp<head_dim> warp(launch.params, shared);
  const AttentionResults<head_dim> results(launch, shared);
  const int32_t kv_heads = launch.params.kv_heads, items = shared.schedule.first_part[shared.schedule.tiles] * kv_heads;
  for (auto index = static_cast<int32_t>(blockIdx.x); index < items; index += static_cast<int32_t>(gridDim.x)) {
    const Item item = find_item(shared.schedule, index, kv_heads);
    const int32_t key_limit = min(item.key_limit, warp.begin(item));
    int32_t split = item.first_key;
    do {  // runs once if there are no keys
      const int32_t next = next_tile_cut(split);
      warp.attend_split(split, min(next, key_limit));
      results.merge_split(item, split == item.first_key, next >= key_limit);
      split = next;
    } while (split < key_limit);
    if (item.parts > 1) results.merge_parts(item);
  }
}

template <int head_dim>
cudaError_t start_paged_attention(const AttentionLaunch& cut, int32_t blocks, cudaStream_t stream) {
  constexpr size_t kSharedBytes = sizeof(AttentionShared<head_dim>);
  static_assert(kSharedBytes <= 99 * 1024);
  return launch<paged_attention_kernel<head_dim>>(dim3(static_cast<unsigned>(blocks)), dim3(kAttentionThreads), kSharedBytes,
                                                  stream, cut);
}

}  // namespace ssd::cuda
