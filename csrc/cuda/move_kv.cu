// Copies K/V places, in all layers at once, in the order they are given: a later move may read what an earlier one wrote.
//
// The moves are few (a tree path) and the columns many, so a thread owns 16 bytes of a place in one plane and walks the moves
// by itself: the order holds without any synchronisation. Floor: twice the bytes moved / memory bandwidth.
#include "kernels.h"
#include "launch.h"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) move_kv_kernel(MoveKvParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t columns = p.row_bytes / static_cast<int64_t>(sizeof(uint4));
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= p.planes * columns) return;
  const int64_t plane = thread / columns, column = thread % columns;
  uint4* place = static_cast<uint4*>(p.kv) + plane * p.places * columns + column;
  for (int32_t i = 0; i < p.moves; ++i) {
    const int32_t src = p.src[i], dst = p.dst[i];
    if (src >= 0 && dst >= 0) place[dst * columns] = place[src * columns];
  }
}

}  // namespace

cudaError_t move_kv(const MoveKvParams& params, cudaStream_t stream) {
  const int64_t threads = params.planes * (params.row_bytes / static_cast<int64_t>(sizeof(uint4)));
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return launch<move_kv_kernel>(dim3(blocks), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
