// Where a token's K/V lives. A KV slot is one place in one page: slot = page * page_size + offset.
//
// The keys a row sees are numbered j = 0, 1, ..: first the paged prefix of its sequence, then its suffix. Work over keys is cut
// into tiles at fixed absolute j, so that moving a key between prefix and suffix, or adding rows, changes no bit of a result.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ssd {

constexpr int kNullPage = 0;  // finished slots' rows write here and read it; what they compute is ignored

SSD_HOST_DEVICE int64_t kv_slot(const int32_t* page_table_row, int32_t position, int32_t page_size) {
  return static_cast<int64_t>(page_table_row[position / page_size]) * page_size + position % page_size;
}

constexpr int kFineTile = 128;        // keys a tile below kFineTileLimit
constexpr int kFineTileLimit = 2048;  // keys
constexpr int kCoarseTile = 512;      // keys a tile beyond

SSD_HOST_DEVICE int32_t next_tile_cut(int32_t key) {
  const int32_t tile = key < kFineTileLimit ? kFineTile : kCoarseTile;
  return (key / tile + 1) * tile;
}

}  // namespace ssd
