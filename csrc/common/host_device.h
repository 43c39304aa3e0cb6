// The prefix of functions that both back ends compile.
#pragma once

#if defined(__CUDACC__)
#define SSD_HOST_DEVICE __host__ __device__ __forceinline__
#else
// static: csrc/cpu/simd compiles these headers once per instruction set, and the linker must not merge the copies.
#define SSD_HOST_DEVICE static inline
#endif
