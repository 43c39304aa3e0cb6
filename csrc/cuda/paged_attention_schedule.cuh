// How the work of paged_attention is cut into items, and which block takes which. No bit of a result depends on this.
//
// Rows are cut into tiles: consecutive rows of one sequence, which share the reads of its keys. Keys are cut twice, both times
// at fixed indices: into splits, at the cuts of common/paging.h, and into sections of a few splits. The splits of a section are
// merged in order, then the sections of a row, so the order of merging is fixed. An item holds one part of a tile's keys. While
// there are few sections, a part is a split, so that few or short sequences fill a GPU too. If there are enough sections, a
// part is a section, and its block merges the splits itself. With many rows, writing and reading a partial result of every
// split would take as much memory traffic as the keys.
//
// Only the device knows how long the sequences are. So each block makes the table of all tiles itself. Block b takes the items
// (tile, part, K/V head) number b, b + gridDim.x and so on. If blocks would be idle, tiles take fewer rows. Then more blocks
// share the passes for suffixes and the merging of a short context.
#pragma once

#include "../common/paging.h"
#include "elements.cuh"
#include "reduce.cuh"

namespace ssd::cuda {

constexpr int32_t kSection = kFineTileLimit;  // keys
constexpr int32_t kFineSplits = kFineTileLimit / kFineTile;
static_assert(kSection % kFineTile == 0 && kSection % kCoarseTile == 0);

constexpr int kMmaRows = 16;                // queries of an mma; a query is a (row, query head)
constexpr int32_t kMaxScheduledRows = 512;  // of a launch
constexpr int32_t kEnoughSections = kMultiprocessors;
constexpr int32_t kPersistentBlocks = 2 * kEnoughSections;

// The parameters of a launch: up to kMaxScheduledRows rows of a call, and how they are cut.
struct AttentionLaunch {
  PagedAttentionParams params;
  int32_t rows_per_tile;      // the most rows that a tile takes
  int32_t enough_sections;    // a part is a section if there are at least so many (tile, section, K/V head)s
  int32_t* section_arrivals;  // of each (section, K/V head), at the number of the section's first split
};

// Launches `blocks` blocks of the kernel for a head size, which paged_attention_<head_dim>.cu instantiates.
template <int head_dim>
cudaError_t start_paged_attention(const AttentionLaunch& launch, int32_t blocks, cudaStream_t stream);

__host__ __device__ constexpr int32_t sections_of(int32_t keys) { return divide_up(keys, kSection); }

__host__ __device__ constexpr int32_t splits_of(int32_t keys) {
  return keys <= kFineTileLimit ? divide_up(keys, kFineTile) : kFineSplits + divide_up(keys - kFineTileLimit, kCoarseTile);
}

__host__ __device__ constexpr int32_t first_key_of_split(int32_t split) {
  return split < kFineSplits ? split * kFineTile : kFineTileLimit + (split - kFineSplits) * kCoarseTile;
}

__device__ __forceinline__ int32_t visible_keys(const PagedAttentionParams& p, int32_t row) {
  return p.prefix_len[row] + (p.suffix_len != nullptr ? p.suffix_len[row] : 0);
}

// The table of all tiles, in shared memory. Element [tiles] of each array is the total.
struct Schedule {
  int32_t first_part[kMaxScheduledRows + 1];  // parts of all tiles before this one
  int32_t first_entry[kMaxScheduledRows +
                      1];  // entries of the workspace that the tiles before use; until then, the keys of each row
  uint16_t first_row[kMaxScheduledRows + 2];  // rows of the tiles before
  int32_t sequence[kMaxScheduledRows];        // of each row
  int32_t tiles;
  int32_t by_section;  // 1: a part is a section; 0: a part is a split
};

// Writes the number of keys of each row to first_entry, and the row's sequence; so both are read at once. Returns how many rows a tile takes.
__device__ __forceinline__ int32_t count_keys(const AttentionLaunch& launch, Schedule& schedule) {
  const PagedAttentionParams& p = launch.params;
  int32_t longest = 1;  // a row without keys needs a part too
#pragma unroll 1
  for (int32_t row = static_cast<int32_t>(threadIdx.x) % kWarp; row < p.rows; row += kWarp) {
    const int32_t keys = visible_keys(p, row);
    schedule.first_entry[row] = keys;
    schedule.sequence[row] = p.row_seq[row];
    longest = max(longest, keys);
  }
  __syncwarp();  // every lane's sequences are there
  longest = warp_reduce(longest, [](int32_t a, int32_t b) { return max(a, b); });
  const int32_t items = p.rows * splits_of(longest) * p.kv_heads;  // with one row a tile
  return min(divide_up(items, kPersistentBlocks), launch.rows_per_tile);
}

// Cuts the rows into tiles of at most rows_per_tile.
__device__ __forceinline__ void find_tiles(const PagedAttentionParams& p, int32_t rows_per_tile, Schedule& schedule) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned up_to_this_lane = (2u << lane) - 1;
  int32_t tiles = 0, run = 0;  // run: first row of the last sequence so far
#pragma unroll 1
  for (int32_t base = 0; base < p.rows; base += kWarp) {
    const int32_t row = base + lane;
    const bool begins_run = row < p.rows && (row == 0 || schedule.sequence[row] != schedule.sequence[row - 1]);
    const unsigned runs = __ballot_sync(kFullMask, begins_run), runs_before = runs & up_to_this_lane;
    const int32_t own_run = runs_before != 0 ? base + 31 - __clz(static_cast<int>(runs_before)) : run;
    const bool begins_tile = row < p.rows && (row - own_run) % rows_per_tile == 0;
    const unsigned begun = __ballot_sync(kFullMask, begins_tile);
    if (begins_tile) schedule.first_row[tiles + __popc(begun & up_to_this_lane) - 1] = static_cast<uint16_t>(row);
    tiles += __popc(begun);
    if (runs != 0) run = base + 31 - __clz(static_cast<int>(runs));
  }
  if (lane == 0) {
    schedule.first_row[tiles] = static_cast<uint16_t>(p.rows);
    schedule.tiles = tiles;
  }
  __syncwarp();
}

__device__ __forceinline__ int32_t sum_up_to_this_lane(int32_t value) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int32_t before = __shfl_up_sync(kFullMask, value, distance);
    value += static_cast<int>(threadIdx.x) % kWarp >= distance ? before : 0;
  }
  return value;
}

// Fills `schedule` in. One warp calls this.
__device__ __forceinline__ void make_schedule(const AttentionLaunch& launch, Schedule& schedule) {
  const PagedAttentionParams& p = launch.params;
  find_tiles(p, count_keys(launch, schedule), schedule);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int32_t tiles = schedule.tiles;
  int32_t sections = 0;
#pragma unroll 1
  for (int32_t tile = lane; tile < tiles; tile += kWarp) {
    int32_t longest = 1;
#pragma unroll 1
    for (int32_t row = schedule.first_row[tile]; row < schedule.first_row[tile + 1]; ++row)
      longest = max(longest, schedule.first_entry[row]);
    schedule.first_part[tile] = longest;  // this lane replaces it below
    sections += sections_of(longest);
  }
  __syncwarp();  // all lanes have read the keys of their rows
  sections = warp_reduce(sections, [](int32_t a, int32_t b) { return a + b; });
  const bool by_section = sections * p.kv_heads >= launch.enough_sections;

  int32_t parts = 0, entries = 0;
#pragma unroll 1
  for (int32_t base = 0; base < tiles; base += kWarp) {
    const int32_t tile = base + lane;
    int32_t own_parts = 0, own_entries = 0;
    if (tile < tiles) {
      const int32_t longest = schedule.first_part[tile];
      own_parts = by_section ? sections_of(longest) : splits_of(longest);
      own_entries = own_parts + (by_section ? 0 : sections_of(longest));
      own_entries *= schedule.first_row[tile + 1] - schedule.first_row[tile];
    }
    const int32_t parts_up_to_this = sum_up_to_this_lane(own_parts), entries_up_to_this = sum_up_to_this_lane(own_entries);
    if (tile < tiles) {
      schedule.first_part[tile] = parts + parts_up_to_this - own_parts;
      schedule.first_entry[tile] = entries + entries_up_to_this - own_entries;
    }
    parts += __shfl_sync(kFullMask, parts_up_to_this, kWarp - 1);
    entries += __shfl_sync(kFullMask, entries_up_to_this, kWarp - 1);
  }
  if (lane == 0) {
    schedule.first_part[tiles] = parts;
    schedule.first_entry[tiles] = entries;
    schedule.by_section = by_section ? 1 : 0;
  }
}

// Brings the page table of the first sequence into the L1 cache. One warp calls this, beside make_schedule.
__device__ __forceinline__ void read_pages_ahead(const PagedAttentionParams& p) {
  constexpr int kPagesOfLine = 32;
  const int page = static_cast<int>(threadIdx.x) % kWarp * kPagesOfLine;
  if (page < p.table_width) read_ahead(p.page_table + static_cast<int64_t>(p.row_seq[0]) * p.table_width + page);
}

// One part of the keys of one tile, for one K/V head.
struct Item {
  int32_t tile, kv_head;
  int32_t first_row, rows;
  int32_t part, parts;           // number of this part; parts of the tile
  int32_t first_key, key_limit;  // of the part; rows may have fewer keys
};

// K/V heads are innermost, then parts, so that neighbouring blocks read neighbouring memory.
__device__ __forceinline__ Item find_item(const Schedule& schedule, int32_t index, int32_t kv_heads) {
  Item item;
  item.kv_head = index % kv_heads;
  item.tile = 0;
#pragma unroll 1
  for (int32_t beyond = schedule.tiles; beyond - item.tile > 1;) {
    const int32_t middle = (item.tile + beyond) / 2;
    (schedule.first_part[middle] <= index / kv_heads ? item.tile : beyond) = middle;
  }
  item.first_row = schedule.first_row[item.tile];
  item.rows = schedule.first_row[item.tile + 1] - item.first_row;
  item.part = index / kv_heads - schedule.first_part[item.tile];
  item.parts = schedule.first_part[item.tile + 1] - schedule.first_part[item.tile];
  item.first_key = schedule.by_section != 0 ? item.part * kSection : first_key_of_split(item.part);
  item.key_limit = schedule.by_section != 0 ? item.first_key + kSection : next_tile_cut(item.first_key);
  return item;
}

}  // namespace ssd::cuda
