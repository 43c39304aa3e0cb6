// The two dtypes of a forward pass on the CPU, and torch's bfloat16 as the kernels' type.
#pragma once

#include <array>
#include <bit>

#include "../arguments.h"
#include "simd/kernels.h"

namespace ssd {

inline constexpr std::array kCpuDtypes{at::kFloat, at::kBFloat16};

inline float as_float(float a) { return a; }
inline float as_float(bf16 a) { return std::bit_cast<float>(static_cast<uint32_t>(a.bits) << 16); }
inline void round_to(float a, float* out) { *out = a; }
inline void round_to(float a, bf16* out) { out->bits = at::BFloat16(a).x; }

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* data_or_null(const OptionalTensor& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

// Calls f with a value of the element type of t: with_run_dtype(x, [&]<typename T>(T) { ... }).
template <typename F>
auto with_run_dtype(const Tensor& t, F&& f) {
  return t.scalar_type() == at::kFloat ? f(float{}) : f(bf16{});
}

}  // namespace ssd
