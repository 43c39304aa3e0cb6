// Two-byte floats as floats, one or eight (16 bytes) at a time, and the choice of a kernel by Dtype.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "ptx.h"

namespace ssd::cuda {

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ void round_to(float x, __nv_bfloat16* y) { *y = __float2bfloat16(x); }
__device__ __forceinline__ void round_to(float x, __half* y) { *y = __float2half(x); }

template <typename T>
__device__ __forceinline__ T rounded(float x) {
  T y;
  round_to(x, &y);
  return y;
}

// `count` neighbouring elements, read and written at once.
template <typename T, int count>
struct alignas(sizeof(T) * count) Vector {
  T element[count];
};

// function(T()), T the element type.
template <typename Function>
cudaError_t with_element_type(Dtype dtype, Function function) {
  return dtype == Dtype::kFloat16 ? function(__half()) : function(__nv_bfloat16());
}

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

}  // namespace ssd::cuda
