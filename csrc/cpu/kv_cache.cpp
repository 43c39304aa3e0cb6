// rope_store_kv and move_kv: what writes the paged K/V cache.

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "run_dtype.h"

namespace ssd {
namespace {

constexpr int64_t kRowsAThread = 16;

void normalise_head(const float* x, const float* weight, float eps, int64_t d, float* y) {
  kernels().rms_norm_float(x, nullptr, weight, eps, d, y);
}
void normalise_head(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y) {
  kernels().rms_norm_bf16(x, nullptr, weight, eps, d, y);
}

// Rotates one head by halves; `out` may be `in`.
template <typename T>
void rotate(const T* in, const float* cos, const float* sin, int64_t half, T* out) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = as_float(in[i]), b = as_float(in[half + i]);
    round_to(a * cos[i] - b * sin[i], out + i);
    round_to(b * cos[i] + a * sin[i], out + half + i);
  }
}

void rope_store_kv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos_sin, const Tensor& positions,
                   const Tensor& kv_slots, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& q_norm,
                   const OptionalTensor& k_norm, double eps) {
  check_cpu_dtype(q, "q");
  const at::ScalarType dtype = q.scalar_type();
  check(q, "q", dtype, {-1, -1, -1}, 2);
  const int64_t rows = q.size(0), dim = q.size(2), query_heads = q.size(1);
  TORCH_CHECK(dim > 0 && dim % 2 == 0, "q must have an even head size, not ", dim);
  check(k, "k", dtype, {rows, -1, dim}, 2);
  const int64_t kv_heads = k.size(1);
  check(v, "v", dtype, {rows, kv_heads, dim}, 2);
  check(cos_sin, "cos_sin", at::kFloat, {-1, dim});
  check(positions, "positions", at::kInt, {rows});
  check(kv_slots, "kv_slots", at::kInt, {rows});
  check(k_cache, "k_cache", dtype, {-1, -1, kv_heads, dim});
  check(v_cache, "v_cache", dtype, {k_cache.size(0), k_cache.size(1), kv_heads, dim});
  check(q_norm, "q_norm", dtype, {dim});
  check(k_norm, "k_norm", dtype, {dim});
  TORCH_CHECK(q_norm.has_value() == k_norm.has_value(), "q_norm and k_norm go together");
  const int64_t places = k_cache.size(0) * k_cache.size(1), half = dim / 2;
  const int32_t* position = positions.const_data_ptr<int32_t>();
  const int32_t* slot = kv_slots.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK(position[r] >= 0 && position[r] < cos_sin.size(0), "positions[", r, "] is ", position[r],
                ", outside the rotary table's ", cos_sin.size(0), " rows");
    TORCH_CHECK(slot[r] >= 0 && slot[r] < places, "kv_slots[", r, "] is ", slot[r], ", outside the cache's ", places,
                " places");
  }
  with_run_dtype(q, [&]<typename T>(T) {
    parallel_for(rows, kRowsAThread, [&](int64_t begin, int64_t end) {
      std::vector<T> normalised(static_cast<size_t>(dim));
      const auto place_head = [&](const T* in, const float* cos, const OptionalTensor& norm, T* out) {
        if (norm.has_value()) {
          normalise_head(in, data<T>(*norm), static_cast<float>(eps), dim, normalised.data());
          in = normalised.data();
        }
        rotate(in, cos, cos + half, half, out);
      };
      for (int64_t r = begin; r < end; ++r) {
        const float* cos = cos_sin.const_data_ptr<float>() + static_cast<int64_t>(position[r]) * dim;
        T* q_row = mutable_data<T>(q) + r * q.stride(0);
        for (int64_t h = 0; h < query_heads; ++h) place_head(q_row + h * dim, cos, q_norm, q_row + h * dim);
        const int64_t at = static_cast<int64_t>(slot[r]) * kv_heads * dim;
        for (int64_t h = 0; h < kv_heads; ++h)
          place_head(data<T>(k) + r * k.stride(0) + h * dim, cos, k_norm, mutable_data<T>(k_cache) + at + h * dim);
        std::memcpy(mutable_data<T>(v_cache) + at, data<T>(v) + r * v.stride(0),
                    static_cast<size_t>(kv_heads * dim) * sizeof(T));
      }
    });
  });
}

void move_kv(const Tensor& kv, const Tensor& src, const Tensor& dst) {
  check_cpu_dtype(kv, "kv");
  check(kv, "kv", kv.scalar_type(), {-1, 2, -1, -1, -1, -1});
  check(src, "src", at::kInt, {-1});
  check(dst, "dst", at::kInt, {src.size(0)});
  const int64_t places = kv.size(2) * kv.size(3);
  const size_t bytes = static_cast<size_t>(kv.size(4) * kv.size(5)) * kv.element_size();
  const int32_t* from = src.const_data_ptr<int32_t>();
  const int32_t* to = dst.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < src.size(0); ++i) {
    TORCH_CHECK(from[i] < places, "src[", i, "] is ", from[i], ", outside the cache's ", places, " places");
    TORCH_CHECK(to[i] < places, "dst[", i, "] is ", to[i], ", outside the cache's ", places, " places");
  }
  auto* base = static_cast<char*>(kv.mutable_data_ptr());
  for (int64_t plane = 0; plane < 2 * kv.size(0); ++plane) {
    char* cache = base + static_cast<size_t>(plane * places) * bytes;
    for (int64_t i = 0; i < src.size(0); ++i)
      if (from[i] >= 0 && to[i] >= 0)
        std::memmove(cache + static_cast<size_t>(to[i]) * bytes, cache + static_cast<size_t>(from[i]) * bytes, bytes);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("rope_store_kv", rope_store_kv);
  m.impl("move_kv", move_kv);
}

}  // namespace ssd
