// Rotates q in place, and writes rotated k, and v, to their KV slots. With q_norm and k_norm, each head is normalised first.
// Each head has a warp, and a lane holds both elements of a pair that is rotated. Floor: a launch.
#include "elements.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace ssd::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostPairs = 4;  // of a lane: head_dim / 2 / 32, for head sizes up to 256

__device__ __forceinline__ void place_head(const Element* in, const Element* norm, const float* cos_sin,
                                           const RopeStoreKvParams& p, Element* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, half = p.head_dim / 2;
  float a[kMostPairs], b[kMostPairs], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kMostPairs; ++i) {
    const int at = i * kWarp + lane;
    a[i] = at < half ? to_float(in[at]) : 0.0f;
    b[i] = at < half ? to_float(in[half + at]) : 0.0f;
    squares += a[i] * a[i] + b[i] * b[i];
  }
  if (norm != nullptr) {
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int at = i * kWarp + lane;
      if (at >= half) continue;
      a[i] = to_float(rounded(a[i] * scale * to_float(norm[at])));
      b[i] = to_float(rounded(b[i] * scale * to_float(norm[half + at])));
    }
  }
#pragma unroll
  for (int i = 0; i < kMostPairs; ++i) {
    const int at = i * kWarp + lane;
    if (at >= half) continue;
    const float cosine = cos_sin[at], sine = cos_sin[half + at];
    out[at] = rounded(a[i] * cosine - b[i] * sine);
    out[half + at] = rounded(b[i] * cosine + a[i] * sine);
  }
}

// blockIdx.x is the row. The warps of its blocks take the heads of q, then of k, then of v.
__global__ void __launch_bounds__(kWarps* kWarp) rope_store_kv_kernel(RopeStoreKvParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int64_t first_head = static_cast<int64_t>(p.kv_slots[row]) * p.kv_heads;
  if (head < p.query_heads + p.kv_heads) {
    const bool of_q = head < p.query_heads;
    const int of_k = head - p.query_heads;
    Element* q = static_cast<Element*>(p.q) + row * p.q_stride + head * p.head_dim;
    const Element* in = of_q ? q : static_cast<const Element*>(p.k) + row * p.k_stride + of_k * p.head_dim;
    Element* out = of_q ? q : static_cast<Element*>(p.k_cache) + (first_head + of_k) * p.head_dim;
    const void* norm = of_q ? p.q_norm : p.k_norm;
    place_head(in, static_cast<const Element*>(norm), p.cos_sin + static_cast<int64_t>(p.positions[row]) * p.head_dim, p, out);
    return;
  }
  head -= p.query_heads + p.kv_heads;
  if (head >= p.kv_heads) return;
  const Element* v = static_cast<const Element*>(p.v) + row * p.v_stride + head * p.head_dim;
  Element* out = static_cast<Element*>(p.v_cache) + (first_head + head) * p.head_dim;
  for (int i = lane; i < p.head_dim; i += kWarp) out[i] = v[i];
}

}  // namespace

cudaError_t rope_store_kv(const RopeStoreKvParams& params, cudaStream_t stream) {
  const int warps = params.query_heads + 2 * params.kv_heads;
  const dim3 grid(static_cast<unsigned>(params.rows), static_cast<unsigned>(divide_up(warps, kWarps)));
  return launch<rope_store_kv_kernel>(grid, dim3(kWarps * kWarp), 0, stream, params);
}

}  // namespace ssd::cuda
