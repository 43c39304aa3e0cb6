// `linear` with bf16 weights: the tiles for each shape.
#include "linear.cuh"

namespace ssd::cuda {
namespace {

template <int tiles, int columns, int warps, int stages>
using Tiles = Config<Format::kBf16, tiles, columns, warps, stages>;

}  // namespace

// Chosen by times on an H100. With more rows, more outputs must share a read of them. A weight with few outputs is better spread
// over many multiprocessors, with deep pipelines: one tile a block, if two blocks a multiprocessor take all. With short rows a
// block is mostly start and end, so it takes two tiles. From 41 to 64 rows, two blocks with half of the rows each read a weight
// of fewer outputs, the second from the L2 cache: then more warps share the work.
cudaError_t linear_bf16(const LinearParams& p, cudaStream_t stream) {
  const bool wide = p.outputs / 4 >= p.inputs;
  const bool spread = !wide && p.outputs <= 2 * kMultiprocessors * kTile;
  if (p.rows <= 8) {
    if (spread) return start_linear<Tiles<1, 1, 8, 8>>(p, stream);
    if (wide && p.outputs <= 4 * kMultiprocessors * kTile) return start_linear<Tiles<2, 1, 8, 4>>(p, stream);
    return start_linear<Tiles<1, 1, 8, 6>>(p, stream);
  }
  if (p.rows <= 16) return spread ? start_linear<Tiles<1, 2, 8, 6>>(p, stream) : start_linear<Tiles<2, 2, 8, 4>>(p, stream);
  if (p.rows <= 24) return spread ? start_linear<Tiles<1, 3, 8, 4>>(p, stream) : start_linear<Tiles<2, 3, 8, 3>>(p, stream);
  if (p.rows <= 32) return spread ? start_linear<Tiles<1, 4, 8, 4>>(p, stream) : start_linear<Tiles<2, 4, 8, 3>>(p, stream);
  if (p.rows <= 40) return start_linear<Tiles<2, 5, 4, 5>>(p, stream);
  if (p.outputs >= 8 * kMultiprocessors * kTile) return start_linear<Tiles<4, 8, 4, 3>>(p, stream);
  if (p.rows > 64) return start_linear<Tiles<2, 8, 4, 4>>(p, stream);
  if (p.outputs > 2 * kMultiprocessors * kTile) return start_linear<Tiles<4, 4, 8, 2>>(p, stream);
  const bool long_rows = p.inputs >= 2 * p.outputs && p.outputs > kMultiprocessors * kTile;
  return long_rows ? start_linear<Tiles<4, 4, 4, 4>>(p, stream) : start_linear<Tiles<2, 4, 8, 3>>(p, stream);
}

}  // namespace ssd::cuda
