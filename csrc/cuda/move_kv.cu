// Copies K/V between KV slots, in all layers, in the given order: a later move may read a slot that an earlier one wrote.
//
// There are few moves (a path of a tree) and many columns. So a thread owns 16 bytes of every KV slot of one plane and does all
// moves itself, which keeps the order without synchronisation. Floor: twice the moved bytes / memory bandwidth.
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
  uint4* column_of_plane = static_cast<uint4*>(p.kv) + plane * p.kv_slots * columns + column;
  for (int32_t i = 0; i < p.moves; ++i) {
    const int32_t src = p.src[i], dst = p.dst[i];
    if (src >= 0 && dst >= 0) column_of_plane[dst * columns] = column_of_plane[src * columns];
  }
}

}  // namespace

cudaError_t move_kv(const MoveKvParams& params, cudaStream_t stream) {
  const int64_t threads = params.planes * (params.row_bytes / static_cast<int64_t>(sizeof(uint4)));
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return launch<move_kv_kernel>(dim3(blocks), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
