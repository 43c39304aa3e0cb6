// Copies rows of the embedding table. Floor: a launch, because there are few bytes.
#include "elements.cuh"
#include "launch.h"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 128;

template <typename Piece>
__global__ void __launch_bounds__(kThreads) embed_kernel(EmbedParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int pieces = p.width * 2 / static_cast<int>(sizeof(Piece));
  const int32_t id = p.ids[blockIdx.x];
  const bool known = id >= 0 && id < p.vocabulary;
  const Piece* from = static_cast<const Piece*>(p.table) + (known ? static_cast<int64_t>(id) : 0) * pieces;
  Piece* to = static_cast<Piece*>(p.out) + static_cast<int64_t>(blockIdx.x) * pieces;
  for (int i = static_cast<int>(threadIdx.x); i < pieces; i += kThreads) to[i] = from[i];
}

}  // namespace

cudaError_t embed(const EmbedParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.rows)), block(kThreads);
  return params.width % 8 == 0 ? launch<embed_kernel<uint4>>(grid, block, 0, stream, params)
                               : launch<embed_kernel<uint16_t>>(grid, block, 0, stream, params);
}

}  // namespace ssd::cuda
