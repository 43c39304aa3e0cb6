// The last block to arrive finishes: how blocks of one launch put their parts together without waiting for each other.
#pragma once

#include "ptx.h"

namespace ssd::cuda {

// True in all threads of the block that is the last of `blocks` to come here; what the others wrote before, it can read. Every
// thread of every block comes. The count is zero again when the last block has come.
__device__ __forceinline__ bool last_to_arrive(int32_t* arrivals, int32_t blocks, int32_t* shared_flag) {
  __threadfence();  // this thread's writes, before the block is counted
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(arrivals, 1) == blocks - 1;
    if (last) *arrivals = 0;
    *shared_flag = last ? 1 : 0;
  }
  __syncthreads();
  const bool last = *shared_flag != 0;
  if (last) __threadfence();
  return last;
}

}  // namespace ssd::cuda
