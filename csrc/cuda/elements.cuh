// bfloat16, the dtype of activations, weights and K/V, as floats: one element, or several that are read at once.
#pragma once

#include "kernels.h"
#include "ptx.h"

namespace ssd::cuda {

using Element = __nv_bfloat16;

constexpr int kMultiprocessors = 132;  // of an H100, for which tiles and parts are chosen

__device__ __forceinline__ float to_float(Element x) { return __bfloat162float(x); }
__device__ __forceinline__ Element rounded(float x) { return __float2bfloat16(x); }

// `count` neighbouring elements, which are read and written at once.
template <int count>
struct alignas(sizeof(Element) * count) Vector {
  Element element[count];
};

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace ssd::cuda
