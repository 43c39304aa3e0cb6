// last_to_arrive(..): blocks of one launch combine their parts without waiting for each other, because the last one does it.
#pragma once

#include "ptx.h"

namespace ssd::cuda {

// Every thread of all `blocks` blocks calls this. It is true in the threads of the last block to call, which can then read
// everything that the others wrote before their calls. The last block sets the count back to zero.
__device__ __forceinline__ bool last_to_arrive(int32_t* arrivals, int32_t blocks, int32_t* shared_flag) {
  __threadfence();  // this thread's writes become visible before the block is counted
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
