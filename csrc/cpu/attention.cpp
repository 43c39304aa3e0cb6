// paged_attention: cuts the rows into runs of one sequence, and gives (run, K/V head) items to threads. simd/attention.cpp has
// the loop over keys and the reason why it is row invariant.

#include <ATen/ops/empty.h>

#include <vector>

#include "parallel.h"
#include "run_dtype.h"

namespace ssd {
namespace {

void run(const AttentionTile<float>& tile) { kernels().attention_float(tile); }
void run(const AttentionTile<bf16>& tile) { kernels().attention_bf16(tile); }

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                       const Tensor& row_seq, const Tensor& prefix_len, double scale, const OptionalTensor& suffix_slots,
                       const OptionalTensor& suffix_len) {
  const AttentionSizes sizes = check_paged_attention(q, k_cache, v_cache, page_table, row_seq, prefix_len, suffix_slots,
                                                     suffix_len, kCpuDtypes, kMaxGroup);
  const int64_t rows = sizes.rows, query_heads = sizes.query_heads, kv_heads = sizes.kv_heads, dim = sizes.head_dim;
  const int64_t page_size = sizes.page_size, kv_slots = sizes.pages * page_size, width = sizes.suffix_width;
  TORCH_CHECK(dim % kBlock == 0 && dim <= kMaxHeadDim, "q must have a head size that is a multiple of ", kBlock, " up to ",
              kMaxHeadDim, ", not ", dim);

  const int32_t* sequence = row_seq.const_data_ptr<int32_t>();
  const int32_t* prefix = prefix_len.const_data_ptr<int32_t>();
  const int32_t* suffix = pointer_or_null<int32_t>(suffix_len);
  const int32_t* slots = pointer_or_null<int32_t>(suffix_slots);
  std::vector<int64_t> runs;  // the first row of each run, and `rows` at the end
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK(sequence[r] >= 0 && sequence[r] < sizes.sequences, "row_seq[", r, "] is ", sequence[r],
                ", outside page_table's ", sizes.sequences, " rows");
    TORCH_CHECK(prefix[r] >= 0 && prefix[r] <= sizes.table_width * page_size, "prefix_len[", r, "] is ", prefix[r],
                ", more than page_table's ", sizes.table_width, " pages of ", page_size, " hold");
    TORCH_CHECK(suffix == nullptr || (suffix[r] >= 0 && suffix[r] <= width), "suffix_len[", r, "] is ",
                suffix == nullptr ? 0 : suffix[r], ", outside 0..", width);
    for (int64_t i = 0; suffix != nullptr && i < suffix[r]; ++i)
      TORCH_CHECK(slots[r * width + i] >= 0 && slots[r * width + i] < kv_slots, "suffix_slots[", r, ", ", i, "] is ",
                  slots[r * width + i], ", outside the cache's ", kv_slots, " KV slots");
    TORCH_CHECK(prefix[r] + (suffix != nullptr ? suffix[r] : 0) > 0, "prefix_len[", r, "]: the row sees no key");
    if (runs.empty() || sequence[r] != sequence[runs.back()] || r - runs.back() == kMaxAttentionRows) {
      runs.push_back(r);
    }
  }
  const int32_t* pages = page_table.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i * page_size < prefix[r]; ++i) {
      const int32_t page = pages[sequence[r] * sizes.table_width + i];
      TORCH_CHECK(page >= 0 && page < sizes.pages, "page_table[", sequence[r], ", ", i, "] is ", page, ", outside the cache's ",
                  sizes.pages, " pages");
    }
  }
  const int64_t items = static_cast<int64_t>(runs.size()) * kv_heads;
  runs.push_back(rows);

  Tensor out = at::empty({rows, query_heads, dim}, q.options());
  with_run_dtype(q, [&]<typename T>(T) {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> scratch;
      for (int64_t item = begin; item < end; ++item) {
        const size_t run_index = static_cast<size_t>(item / kv_heads);
        const int64_t first = runs[run_index];
        const int64_t count = runs[run_index + 1] - first;
        scratch.resize(static_cast<size_t>(attention_scratch(count, query_heads / kv_heads, dim)));
        run(AttentionTile<T>{
            .q = data<T>(q) + first * q.stride(0),
            .k_cache = data<T>(k_cache),
            .v_cache = data<T>(v_cache),
            .pages = pages + sequence[first] * sizes.table_width,
            .prefix_len = prefix + first,
            .suffix_slots = slots != nullptr ? slots + first * width : nullptr,
            .suffix_len = suffix != nullptr ? suffix + first : nullptr,
            .out = mutable_data<T>(out) + first * query_heads * dim,
            .scratch = scratch.data(),
            .rows = count,
            .q_stride = q.stride(0),
            .query_heads = static_cast<int32_t>(query_heads),
            .kv_heads = static_cast<int32_t>(kv_heads),
            .head_dim = static_cast<int32_t>(dim),
            .page_size = static_cast<int32_t>(page_size),
            .suffix_width = static_cast<int32_t>(width),
            .kv_head = static_cast<int32_t>(item % kv_heads),
            .scale = static_cast<float>(scale),
        });
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("paged_attention", paged_attention); }

}  // namespace ssd
