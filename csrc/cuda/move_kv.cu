// Moves the K/V of accepted tree paths to directly after their roots, in all layers, in the order of each path: a later move may
// read a slot that an earlier one wrote.
//
// There are few moves (one path for each slot) and many columns. So a thread owns 16 bytes of every KV slot of one plane and does all
// moves itself, which keeps the order without synchronisation. Floor: twice the moved bytes / memory bandwidth.
#include "../common/paging.h"
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
  const int64_t positions = static_cast<int64_t>(p.table_width) * p.page_size;
  for (int64_t s = 0; s < p.slots; ++s) {
    const int32_t* pages = p.page_table + s * p.table_width;
    const int32_t* path = p.path + s * p.nodes;
    const int64_t n = p.length[s * p.length_stride];
    for (int32_t i = 1; i < p.nodes && path[i] >= 0; ++i) {
      const int64_t from = n + path[i], to = n + i;
      if (n < 0 || from >= positions || to >= positions) continue;  // the host cannot check lengths
      const int64_t src = kv_slot(pages, static_cast<int32_t>(from), p.page_size);
      const int64_t dst = kv_slot(pages, static_cast<int32_t>(to), p.page_size);
      column_of_plane[dst * columns] = column_of_plane[src * columns];
    }
  }
}

}  // namespace

cudaError_t move_kv(const MoveKvParams& params, cudaStream_t stream) {
  const int64_t threads = params.planes * (params.row_bytes / static_cast<int64_t>(sizeof(uint4)));
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return launch<move_kv_kernel>(dim3(blocks), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
