// paged_attention: cuts the rows into runs of one sequence, and gives (run, K/V head) items to threads. If these are too few to
// keep all threads busy to the end, an item is one tile of a run's keys, and the tiles are merged afterwards.
// simd/attention.cpp has the loop over keys and the reason why it is row invariant.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "program.h"
#include "run_dtype.h"

namespace ssd {
namespace {

constexpr int64_t kItemsAThread = 4;         // at least, so that the last item to end is a small part of the work
constexpr int64_t kMostPartials = 4 << 20;   // floats of tiles that wait to be merged; longer runs are not cut
constexpr int64_t kMergedAtOnce = 32 << 10;  // floats that are worth a thread of their own

// Everything that a call needs: an AttentionRun of all rows and heads, and the sizes of the tables.
template <typename T>
struct Call {
  AttentionRun<T> all;
  const int32_t* row_seq;     // [rows]
  const int32_t* page_table;  // [sequences, table_width]
  int64_t sequences, table_width, pages;
};

void compute(const AttentionRun<float>& run) { kernels().attention_float(run); }
void compute(const AttentionRun<bf16>& run) { kernels().attention_bf16(run); }

// Refuses a row that reads outside its tables.
template <typename T>
void check_values(const Call<T>& call) {
  const AttentionRun<T>& all = call.all;
  const int64_t kv_slots = call.pages * all.page_size, width = all.suffix_width;
  int32_t checked_sequence = -1;
  int64_t checked = 0;  // pages of that sequence
  for (int64_t r = 0; r < all.rows; ++r) {
    const int32_t sequence = call.row_seq[r], prefix = all.prefix_len[r];
    TORCH_CHECK(sequence >= 0 && sequence < call.sequences, "row_seq[", r, "] is ", sequence, ", outside page_table's ",
                call.sequences, " rows");
    TORCH_CHECK(prefix >= 0 && prefix <= call.table_width * all.page_size, "prefix_len[", r, "] is ", prefix,
                ", more than page_table's ", call.table_width, " pages of ", all.page_size, " hold");
    const int32_t suffix = all.suffix_len != nullptr ? all.suffix_len[r] : 0;
    TORCH_CHECK(suffix >= 0 && suffix <= width, "suffix_len[", r, "] is ", suffix, ", outside 0..", width);
    for (int64_t i = 0; i < suffix; ++i) {
      const int32_t slot = all.suffix_slots[r * width + i];
      TORCH_CHECK(slot >= 0 && slot < kv_slots, "suffix_slots[", r, ", ", i, "] is ", slot, ", outside the cache's ", kv_slots,
                  " KV slots");
    }
    TORCH_CHECK(prefix + suffix > 0, "prefix_len[", r, "]: the row sees no key");
    if (sequence != checked_sequence) checked = 0;
    checked_sequence = sequence;
    for (; checked * all.page_size < prefix; ++checked) {
      const int32_t page = call.page_table[sequence * call.table_width + checked];
      TORCH_CHECK(page >= 0 && page < call.pages, "page_table[", sequence, ", ", checked, "] is ", page,
                  ", outside the cache's ", call.pages, " pages");
    }
  }
}

int64_t tiles_of(int32_t keys) {
  int64_t tiles = 0;
  for (int32_t first = 0; first < keys; first = next_tile_cut(first)) ++tiles;
  return tiles;
}

// The rows [first, first + rows), all of one sequence, with `tiles` tiles of keys.
struct Rows {
  int64_t first, rows, tiles;
};

// An item for the threads. Tiles of a run lie partial_stride apart in the partials, from `partials` on.
struct Item {
  int64_t run;
  int32_t kv_head, first_key;
  int64_t partial;
};

template <typename T>
void attend(const Call<T>& call) {
  const AttentionRun<T>& all = call.all;
  const int64_t group = all.query_heads / all.kv_heads, most_rows = std::max<int64_t>(1, kMaxAttentionQueries / group);
  std::vector<Rows> runs;
  int64_t work = 0, largest = 0;  // in tiles x rows, of a K/V head
  int64_t partials = 0;           // floats, if all runs are cut into tiles
  for (int64_t r = 0; r < all.rows; ++r) {
    if (runs.empty() || call.row_seq[r] != call.row_seq[r - 1] || runs.back().rows == most_rows) runs.push_back({r, 0, 0});
    Rows& run = runs.back();
    ++run.rows;
    run.tiles = std::max(run.tiles, tiles_of(all.prefix_len[r] + (all.suffix_len != nullptr ? all.suffix_len[r] : 0)));
  }
  for (const Rows& run : runs) {
    work += run.rows * run.tiles;
    largest = std::max(largest, run.rows * run.tiles);
    partials += run.tiles * all.kv_heads * attention_partial(run.rows * group, all.head_dim);
  }
  const int64_t items = static_cast<int64_t>(runs.size()) * all.kv_heads, threads = at::get_num_threads();
  const bool cut = threads > 1 && largest * threads * kItemsAThread > work * all.kv_heads && partials <= kMostPartials;

  // The run of one K/V head, with scratch memory of this thread.
  const auto part_of = [&](const Rows& rows, int64_t kv_head) {
    static thread_local std::vector<float> scratch;
    scratch.resize(static_cast<size_t>(attention_scratch(most_rows * group, all.head_dim)));
    AttentionRun<T> part = all;
    part.rows = rows.rows;
    part.q += rows.first * all.q_stride;
    part.pages = call.page_table + call.row_seq[rows.first] * call.table_width;
    part.prefix_len += rows.first;
    if (all.suffix_len != nullptr) {
      part.suffix_slots += rows.first * all.suffix_width;
      part.suffix_len += rows.first;
    }
    part.out += rows.first * all.query_heads * all.head_dim;
    part.scratch = scratch.data();
    part.kv_head = static_cast<int32_t>(kv_head);
    return part;
  };

  if (!cut) {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item)
        compute(part_of(runs[static_cast<size_t>(item / all.kv_heads)], item % all.kv_heads));
    });
    return;
  }

  static thread_local std::vector<float> memory;
  static thread_local std::vector<Item> tiles;
  memory.resize(static_cast<size_t>(partials));
  tiles.clear();
  int64_t place = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const int64_t floats = attention_partial(runs[i].rows * group, all.head_dim);
    int32_t first = 0;
    for (int64_t tile = 0; tile < runs[i].tiles; ++tile, first = next_tile_cut(first))
      for (int32_t head = 0; head < all.kv_heads; ++head, place += floats)
        tiles.push_back({static_cast<int64_t>(i), head, first, place});
  }
  float* const partial = memory.data();
  const Item* const item_of = tiles.data();
  parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (const Item* item = item_of + begin; item != item_of + end; ++item) {
      AttentionRun<T> part = part_of(runs[static_cast<size_t>(item->run)], item->kv_head);
      part.part = AttentionPart::kTile;
      part.first_key = item->first_key;
      part.partials = partial + item->partial;
      compute(part);
    }
  });
  std::vector<int64_t> first_partial;
  place = 0;
  for (const Rows& run : runs) {
    first_partial.push_back(place);
    place += run.tiles * all.kv_heads * attention_partial(run.rows * group, all.head_dim);
  }
  parallel_for(items, std::max<int64_t>(1, items * kMergedAtOnce / partials), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const size_t i = static_cast<size_t>(item / all.kv_heads);
      const int64_t floats = attention_partial(runs[i].rows * group, all.head_dim), head = item % all.kv_heads;
      AttentionRun<T> part = part_of(runs[i], head);
      part.part = AttentionPart::kMerge;
      part.partials = partial + first_partial[i] + head * floats;
      part.partial_stride = all.kv_heads * floats;
      compute(part);
    }
  });
}

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                       const Tensor& row_seq, const Tensor& prefix_len, double scale, const OptionalTensor& suffix_slots,
                       const OptionalTensor& suffix_len) {
  const AttentionSizes sizes = check_paged_attention(q, k_cache, v_cache, page_table, row_seq, prefix_len, suffix_slots,
                                                     suffix_len, kCpuDtypes, kMaxGroup);
  const int64_t dim = sizes.head_dim;
  TORCH_CHECK(dim % kBlock == 0 && dim <= kMaxHeadDim, "q must have a head size that is a multiple of ", kBlock, " up to ",
              kMaxHeadDim, ", not ", dim);
  Tensor out = at::empty({sizes.rows, sizes.query_heads, dim}, q.options());
  run_or_record([=] {
    with_run_dtype(q, [&]<typename T>(T) {
      const Call<T> call{
          .all = {.q = data<T>(q),
                  .k_cache = data<T>(k_cache),
                  .v_cache = data<T>(v_cache),
                  .pages = nullptr,
                  .prefix_len = prefix_len.const_data_ptr<int32_t>(),
                  .suffix_slots = pointer_or_null<int32_t>(suffix_slots),
                  .suffix_len = pointer_or_null<int32_t>(suffix_len),
                  .out = mutable_data<T>(out),
                  .scratch = nullptr,
                  .rows = sizes.rows,
                  .q_stride = q.stride(0),
                  .query_heads = static_cast<int32_t>(sizes.query_heads),
                  .kv_heads = static_cast<int32_t>(sizes.kv_heads),
                  .head_dim = static_cast<int32_t>(dim),
                  .page_size = static_cast<int32_t>(sizes.page_size),
                  .suffix_width = static_cast<int32_t>(sizes.suffix_width),
                  .kv_head = 0,
                  .scale = static_cast<float>(scale),
                  .part = AttentionPart::kAll,
                  .first_key = 0,
                  .partials = nullptr,
                  .partial_stride = 0},
          .row_seq = row_seq.const_data_ptr<int32_t>(),
          .page_table = page_table.const_data_ptr<int32_t>(),
          .sequences = sizes.sequences,
          .table_width = sizes.table_width,
          .pages = sizes.pages,
      };
      check_values(call);
      attend(call);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("paged_attention", paged_attention); }

}  // namespace ssd
