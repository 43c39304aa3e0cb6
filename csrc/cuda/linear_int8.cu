// `linear` with int8 weights: the tiles for each shape.
#include "linear.cuh"

namespace ssd::cuda {
namespace {

template <int tiles, int columns, int warps, int stages>
using Tiles = Config<Format::kInt8, tiles, columns, warps, stages>;

}  // namespace

// Chosen by times of whole passes on an H100, where small blocks let the next kernel start early: for this, Llama-3.1-8B's pass
// took 3,776 µs with the tiles that were fastest alone, and 3,520 with these. A weight with no more outputs than inputs is spread
// over many multiprocessors; with short rows a block is mostly start and end, so it takes two tiles.
cudaError_t linear_int8(const LinearParams& p, cudaStream_t stream) {
  constexpr int kShortRow = 1024;
  const bool spread = p.outputs <= p.inputs;
  if (p.rows <= 8) {
    if (spread && p.rows > 1) return start_linear<Tiles<1, 1, 8, 8>>(p, stream);
    if (!spread && p.inputs <= kShortRow) return start_linear<Tiles<2, 1, 8, 4>>(p, stream);
    return start_linear<Tiles<1, 1, 8, 6>>(p, stream);
  }
  if (p.rows <= 16) return spread ? start_linear<Tiles<1, 2, 8, 6>>(p, stream) : start_linear<Tiles<2, 2, 8, 4>>(p, stream);
  if (p.rows <= 24) return spread ? start_linear<Tiles<1, 3, 8, 6>>(p, stream) : start_linear<Tiles<2, 3, 8, 4>>(p, stream);
  if (p.rows <= 32) return spread ? start_linear<Tiles<1, 4, 8, 4>>(p, stream) : start_linear<Tiles<2, 4, 8, 4>>(p, stream);
  if (p.outputs >= 8 * kMultiprocessors * kTile || p.rows > 64) return start_linear<Tiles<4, 8, 4, 3>>(p, stream);
  const bool few = p.outputs <= kMultiprocessors * kTile;
  return few ? start_linear<Tiles<2, 4, 8, 4>>(p, stream) : start_linear<Tiles<4, 4, 8, 3>>(p, stream);
}

}  // namespace ssd::cuda
