// The launcher of paged_attention: how the rows of a call are cut, and the size of the workspace. paged_attention.cuh has the
// kernel.
#include <algorithm>
#include <limits>

#include "paged_attention_schedule.cuh"

namespace ssd::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{128} << 20;  // a call that needs more takes several launches

// How a call is cut. It depends on shapes alone.
struct Cut {
  int32_t rows_per_tile;
  int32_t rows;            // of a launch
  int32_t max_parts;       // of a tile
  int64_t entries;         // partial results in the workspace, each of all heads of a row
  int64_t bytes_of_entry;  // of one of them
};

Cut cut_of(const PagedAttentionParams& p) {
  Cut cut;
  const int32_t group = p.query_heads / p.kv_heads;
  const int32_t rows_of_sequence = divide_up(p.rows, std::max(p.sequences, 1));
  const int32_t most_rows = kMmaRows / group;
  cut.rows_per_tile = divide_up(rows_of_sequence, divide_up(rows_of_sequence, most_rows));

  const int64_t capacity = static_cast<int64_t>(p.table_width) * p.page_size + p.suffix_width;
  const auto keys =
      static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(capacity, 1), std::numeric_limits<int32_t>::max() / 2));
  cut.max_parts = splits_of(keys);
  cut.bytes_of_entry = static_cast<int64_t>(p.query_heads) * (p.head_dim + 4) * static_cast<int64_t>(sizeof(float));
  const int64_t sections = sections_of(keys), room = kWorkspaceBytes / (sections * cut.bytes_of_entry);
  cut.rows = static_cast<int32_t>(std::min<int64_t>(p.rows, std::clamp<int64_t>(room, 1, kMaxScheduledRows)));
  // Splits, and the sections merged from them, need entries only if there are few sections.
  const int64_t few_sections = kEnoughSections / p.kv_heads + 1;
  cut.entries = std::max(cut.rows * sections, std::min<int64_t>(int64_t{cut.rows} * (cut.max_parts + sections),
                                                                few_sections * (kFineSplits + 1) * cut.rows_per_tile));
  return cut;
}

bool is_supported(const PagedAttentionParams& p) {
  return p.kv_heads > 0 && p.query_heads > 0 && p.query_heads % p.kv_heads == 0 && p.query_heads / p.kv_heads <= kMmaRows &&
         (p.rows == 1 || p.q_stride % 8 == 0) && p.page_size > 0 && p.scale > 0.0f;
}

cudaError_t start(const AttentionLaunch& launch, int32_t blocks, cudaStream_t stream) {
  switch (launch.params.head_dim) {
    case 64: return start_paged_attention<64>(launch, blocks, stream);
    case 80: return start_paged_attention<80>(launch, blocks, stream);
    case 96: return start_paged_attention<96>(launch, blocks, stream);
    case 128: return start_paged_attention<128>(launch, blocks, stream);
    case 256: return start_paged_attention<256>(launch, blocks, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

size_t paged_attention_workspace(const PagedAttentionParams& params) {
  if (params.rows == 0 || !is_supported(params)) return 0;
  const Cut cut = cut_of(params);
  return cut.max_parts == 1 ? 0 : static_cast<size_t>(cut.entries * cut.bytes_of_entry);
}

int64_t paged_attention_arrivals(const PagedAttentionParams& params) {
  const int32_t rows = std::min(params.rows, kMaxScheduledRows);
  return int64_t{rows} * params.kv_heads + kFineSplits * kEnoughSections;
}

cudaError_t paged_attention(const PagedAttentionParams& params, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  if (!is_supported(params)) return cudaErrorInvalidValue;
  const Cut cut = cut_of(params);
  for (int32_t first = 0; first < params.rows; first += cut.rows) {
    PagedAttentionParams p = params;
    p.rows = std::min(cut.rows, params.rows - first);
    p.q = static_cast<const uint16_t*>(params.q) + first * params.q_stride;
    p.out = static_cast<uint16_t*>(params.out) + int64_t{first} * params.query_heads * params.head_dim;
    p.row_seq += first;
    p.prefix_len += first;
    if (params.suffix_len != nullptr) {
      p.suffix_len += first;
      p.suffix_slots += int64_t{first} * params.suffix_width;
    }
    const int64_t most_items = int64_t{p.rows} * cut.max_parts * p.kv_heads;
    const AttentionLaunch launch{
        .params = p,
        .rows_per_tile = cut.rows_per_tile,
        .enough_sections = kEnoughSections,
        .section_arrivals = p.arrivals + int64_t{std::min(params.rows, kMaxScheduledRows)} * p.kv_heads};
    const cudaError_t error = start(launch, static_cast<int32_t>(std::min<int64_t>(kPersistentBlocks, most_items)), stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace ssd::cuda
