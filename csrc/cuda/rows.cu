// The rows of a forward pass over the sequences' tables: the nodes of each slot's chain or tree, or one step of each branch.
// csrc/cpu/rows.cpp is the same in plain loops. A slot has a block, and a thread fills a row. Floor: a launch.
#include "../common/paging.h"
#include "kernels.h"
#include "launch.h"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 128;

// The KV slot of a position of a sequence of length n. A slot without a sequence gets the null page, and so does a position
// outside the page table, because the host cannot check lengths.
__device__ __forceinline__ int32_t slot_at(const TreeRowsParams& p, int64_t sequence, int64_t n, int64_t position) {
  const bool inside = n > 0 && position >= 0 && position < static_cast<int64_t>(p.table_width) * p.page_size;
  if (!inside) return kNullPage;
  const int32_t* pages = p.page_table + sequence * p.table_width;
  return static_cast<int32_t>(kv_slot(pages, static_cast<int32_t>(position), p.page_size));
}

// The parent of a node after the root. The walk to the root ends whatever the table holds.
__device__ __forceinline__ int32_t parent_of(const TreeRowsParams& p, int32_t node) {
  const int32_t parent = p.parent[node];
  return parent < node ? parent : 0;
}

__global__ void __launch_bounds__(kThreads) tree_rows_kernel(TreeRowsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t s = blockIdx.x;
  const int64_t n = min(max(p.length[s], 0), p.capacity - 1);
  for (auto i = static_cast<int32_t>(threadIdx.x); i < p.count; i += kThreads) {
    const int64_t row = s * p.count + i;
    const int32_t node = p.first + i;
    const bool in_tree = p.parent != nullptr && node > 0;
    const int64_t stored_at = max(n + node, static_cast<int64_t>(0));
    int32_t level = 0;
    if (in_tree)
      for (int32_t up = node; up > 0 && level < p.depth; up = parent_of(p, up)) ++level;
    p.rows.ids[row] = node <= 0 ? p.tokens[s * p.capacity + stored_at] : p.spec_tokens[s * (p.nodes - 1) + node - 1];
    p.rows.positions[row] = static_cast<int32_t>(in_tree ? n + level : stored_at);
    p.rows.kv_slots[row] = slot_at(p, s, n, stored_at);
    p.rows.row_seq[row] = static_cast<int32_t>(s);
    p.rows.prefix_len[row] = static_cast<int32_t>((in_tree ? n : stored_at) + 1);
    p.rows.suffix_len[row] = level;
    int32_t* suffix = p.rows.suffix_slots + row * p.depth;
    for (int32_t unused = level; unused < p.depth; ++unused) suffix[unused] = 0;
    for (int32_t up = node; level > 0; up = parent_of(p, up)) suffix[--level] = slot_at(p, s, n, n + up);
  }
}

__global__ void __launch_bounds__(kThreads) branch_rows_kernel(BranchRowsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t s = blockIdx.x;
  for (auto b = static_cast<int32_t>(threadIdx.x); b < p.budget; b += kThreads) {
    const int64_t row = s * p.budget + b;
    const int32_t trunk = p.length[s] + 1 + max(p.guess_k[row], 0);
    const int32_t* scratch = p.scratch + row * p.lookahead;
    p.rows.ids[row] = p.step == 0 ? p.guess[row] : p.branch_tokens[row * p.lookahead + p.step - 1];
    p.rows.positions[row] = trunk + p.step;
    p.rows.kv_slots[row] = scratch[p.step];
    p.rows.row_seq[row] = static_cast<int32_t>(s);
    p.rows.prefix_len[row] = trunk;
    p.rows.suffix_len[row] = p.step + 1;
    for (int32_t i = 0; i <= p.step; ++i) p.rows.suffix_slots[row * (p.step + 1) + i] = scratch[i];
  }
}

}  // namespace

cudaError_t tree_rows(const TreeRowsParams& params, cudaStream_t stream) {
  if (params.count == 0) return cudaSuccess;
  return launch<tree_rows_kernel>(dim3(static_cast<unsigned>(params.slots)), dim3(kThreads), 0, stream, params);
}

cudaError_t branch_rows(const BranchRowsParams& params, cudaStream_t stream) {
  return launch<branch_rows_kernel>(dim3(static_cast<unsigned>(params.slots)), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
