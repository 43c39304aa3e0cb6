// The position of a token's K/V in the cache. A KV slot is one position in one page: slot = page * page_size + offset.
//
// The keys that a row sees are numbered j = 0, 1, ..: first the paged prefix of its sequence, then the row's own suffix. Work
// over keys is cut into tiles at fixed j. So a result keeps all its bits when a key moves between prefix and suffix, and when
// rows are added.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ssd {

// Rows of a slot without a sequence, whose length is 0, write to the first KV slot of this page. Their results are ignored.
constexpr int kNullPage = 0;

SSD_HOST_DEVICE int64_t kv_slot(const int32_t* page_table_row, int32_t position, int32_t page_size) {
  return static_cast<int64_t>(page_table_row[position / page_size]) * page_size + position % page_size;
}

constexpr int kFineTile = 128;        // keys of a tile before key kFineTileLimit
constexpr int kFineTileLimit = 2048;  // keys
constexpr int kCoarseTile = 512;      // keys of a tile from there on

SSD_HOST_DEVICE int32_t next_tile_cut(int32_t key) {
  const int32_t tile = key < kFineTileLimit ? kFineTile : kCoarseTile;
  return (key / tile + 1) * tile;
}

}  // namespace ssd
