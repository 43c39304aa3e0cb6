// Reductions over a warp and over a block, in a fixed order: the same values give the same bits every time.
#pragma once

#include "ptx.h"

namespace ssd::cuda {

template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kFullMask, value, distance));
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
  return warp_reduce(value, [](float a, float b) { return a + b; });
}

// Every thread gets the result. scratch: shared memory with one T for each warp. It may be used for something else after the
// next barrier.
template <int warps, typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Combine combine) {
  value = warp_reduce(value, combine);
  __syncthreads();  // no thread reads an earlier result any more
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = scratch[0];
#pragma unroll
  for (int warp = 1; warp < warps; ++warp) total = combine(total, scratch[warp]);
  return total;
}

template <int warps>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  return block_reduce<warps>(value, scratch, [](float a, float b) { return a + b; });
}

}  // namespace ssd::cuda
