// What work a call of paged_attention is cut into, and which block does what. No bit of a result depends on it.
//
// Rows are cut into tiles: consecutive rows of one sequence, which share the reads of its keys. Keys are cut twice, both times
// at fixed absolute indices: into splits, at the cuts of common/paging.h, and into sections of a few splits. A row's result is
// the merge, in order, of its sections, and a section's that of its splits: a fixed tree. The part of a tile's keys that one
// block works through is a split as long as there are few sections, so that short and few sequences fill a GPU too. Once there
// are enough it is a section, whose splits the block merges by itself: many rows' partial results of every split, written and
// read again, would be traffic like that of the keys.
//
// How long the sequences are only the device knows. So each block makes the table of all tiles by itself, and blocks walk the
// items, (tile, part, K/V head), with the grid's stride.
#pragma once

#include "../common/paging.h"
#include "elements.cuh"
#include "reduce.cuh"

namespace ssd::cuda {

constexpr int32_t kSection = kFineTileLimit;  // keys
constexpr int32_t kFineSplits = kFineTileLimit / kFineTile;
static_assert(kSection % kFineTile == 0 && kSection % kCoarseTile == 0);

constexpr int kMmaRows = 16;                // queries, that is (row, query head)s, of a mma
constexpr int kMaxDoubleHeadDim = 128;      // larger heads leave no registers for 2 kMmaRows queries
constexpr int32_t kMaxTileRows = kWarp;     // a lane each
constexpr int32_t kMaxScheduledRows = 512;  // of a launch
constexpr int32_t kEnoughSections = 132;    // one for each multiprocessor of an H100
constexpr int32_t kPersistentBlocks = 2 * kEnoughSections;

// A launch: up to kMaxScheduledRows rows of a call, and how they are cut.
struct AttentionLaunch {
  PagedAttentionParams params;
  int32_t query_tiles;        // of kMmaRows queries, in which a tile of rows fits: 1 or 2
  int32_t rows_per_tile;      // at most kMaxTileRows
  int32_t enough_sections;    // from so many (tile, section, K/V head)s on a part is a section
  int32_t* section_arrivals;  // at each (section, K/V head), numbered like the first of its splits
};

// Starts `blocks` blocks of a head size's kernel, which paged_attention_<head_dim>.cu instantiates.
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

// Lives in shared memory. Element [tiles] of each array is the total.
struct Schedule {
  int32_t first_part[kMaxScheduledRows + 1];   // how many parts the tiles before have
  int32_t first_place[kMaxScheduledRows + 1];  // how many places for a row's partial results they have
  uint16_t first_row[kMaxScheduledRows + 2];   // how many rows they have
  int32_t tiles;
  int32_t by_section;  // 1: parts are sections, 0: splits
};

// Cuts the rows into tiles.
__device__ __forceinline__ void find_tiles(const AttentionLaunch& launch, Schedule& schedule) {
  const PagedAttentionParams& p = launch.params;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned up_to_this_lane = (2u << lane) - 1;
  int32_t tiles = 0, run = 0;  // run: first row of the sequence that the rows so far end with
  for (int32_t base = 0; base < p.rows; base += kWarp) {
    const int32_t row = base + lane;
    const bool begins_run = row < p.rows && (row == 0 || p.row_seq[row] != p.row_seq[row - 1]);
    const unsigned runs = __ballot_sync(kFullMask, begins_run), runs_before = runs & up_to_this_lane;
    const int32_t own_run = runs_before != 0 ? base + 31 - __clz(static_cast<int>(runs_before)) : run;
    const bool begins_tile = row < p.rows && (row - own_run) % launch.rows_per_tile == 0;
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

// One warp fills `schedule` in.
__device__ __forceinline__ void make_schedule(const AttentionLaunch& launch, Schedule& schedule) {
  find_tiles(launch, schedule);
  const PagedAttentionParams& p = launch.params;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int32_t tiles = schedule.tiles;
  int32_t sections = 0;
  for (int32_t tile = lane; tile < tiles; tile += kWarp) {
    int32_t longest = 1;  // a row without keys has a result too
    for (int32_t row = schedule.first_row[tile]; row < schedule.first_row[tile + 1]; ++row)
      longest = max(longest, visible_keys(p, row));
    schedule.first_part[tile] = longest;  // until this lane replaces it below
    sections += sections_of(longest);
  }
  sections = warp_reduce(sections, [](int32_t a, int32_t b) { return a + b; });
  const bool by_section = sections * p.kv_heads >= launch.enough_sections;

  int32_t parts = 0, places = 0;
  for (int32_t base = 0; base < tiles; base += kWarp) {
    const int32_t tile = base + lane;
    int32_t own_parts = 0, own_places = 0;
    if (tile < tiles) {
      const int32_t longest = schedule.first_part[tile];
      own_parts = by_section ? sections_of(longest) : splits_of(longest);
      own_places = own_parts + (by_section ? 0 : sections_of(longest));
      own_places *= schedule.first_row[tile + 1] - schedule.first_row[tile];
    }
    const int32_t parts_up_to_this = sum_up_to_this_lane(own_parts), places_up_to_this = sum_up_to_this_lane(own_places);
    if (tile < tiles) {
      schedule.first_part[tile] = parts + parts_up_to_this - own_parts;
      schedule.first_place[tile] = places + places_up_to_this - own_places;
    }
    parts += __shfl_sync(kFullMask, parts_up_to_this, kWarp - 1);
    places += __shfl_sync(kFullMask, places_up_to_this, kWarp - 1);
  }
  if (lane == 0) {
    schedule.first_part[tiles] = parts;
    schedule.first_place[tiles] = places;
    schedule.by_section = by_section ? 1 : 0;
  }
}

// One part of the keys of one tile, for one K/V head.
struct Item {
  int32_t tile, kv_head;
  int32_t first_row, rows;
  int32_t part, parts;           // this one of the tile's
  int32_t first_key, key_limit;  // of the part; the rows may end before
};

// K/V heads are innermost and parts next: neighbouring blocks read neighbouring memory.
__device__ __forceinline__ Item find_item(const Schedule& schedule, int32_t index, int32_t kv_heads) {
  Item item;
  item.kv_head = index % kv_heads;
  item.tile = 0;
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
