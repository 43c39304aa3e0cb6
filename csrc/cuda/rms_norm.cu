// RMSNorm of each row, in float. Each row has a block: rows are few and short, so only latency matters, and the second read of
// a row comes from L1. Floor: a launch.
#include "elements.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 256;

template <int count>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormParams p) {
  using V = Vector<count>;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int vectors = p.width / count;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * vectors;
  const V* x = static_cast<const V*>(p.x) + static_cast<int64_t>(blockIdx.x) * (p.x_stride / count);
  float squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const V row = x[i];
#pragma unroll
    for (int e = 0; e < count; ++e) squares += to_float(row.element[e]) * to_float(row.element[e]);
  }
  const float total = block_sum<kThreads / kWarp>(squares, shared_memory<float>());
  const float scale = 1.0f / sqrtf(total / static_cast<float>(p.width) + p.eps);
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const V row = x[i], weight = static_cast<const V*>(p.weight)[i];
    V out;
#pragma unroll
    for (int e = 0; e < count; ++e) out.element[e] = rounded(to_float(row.element[e]) * scale * to_float(weight.element[e]));
    static_cast<V*>(p.out)[first + i] = out;
  }
}

}  // namespace

cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.rows)), block(kThreads);
  constexpr size_t kSharedBytes = kThreads / kWarp * sizeof(float);
  return params.width % 8 == 0 && params.x_stride % 8 == 0
             ? launch<rms_norm_kernel<8>>(grid, block, kSharedBytes, stream, params)
             : launch<rms_norm_kernel<1>>(grid, block, kSharedBytes, stream, params);
}

}  // namespace ssd::cuda
