// pack_weight, and the launcher of linear. linear.cuh has the kernel.
#include "linear.cuh"

namespace ssd::cuda {
namespace {

// The origin of element `at` of a packed weight. In an mma, a lane with t = lane % 4 holds the columns 2t, 2t + 1, 2t + 8 and
// 2t + 9, of the rows lane / 4 and lane / 4 + 8. The columns of the two mmas of a piece stand for the inputs 8t .. 8t + 7: the
// first four for the first mma, the others for the second. int8: `widen` takes a word for each two columns, and the rows
// alternate in it.
struct Source {
  int row;  // within the tile
  int tile;
  int input;
};
template <Format format>
__device__ __forceinline__ Source source_of(int64_t at, int pieces) {
  const int64_t piece = at / (kTile * kPiece);
  int lane, lower, input;  // lower: whether it is of the row lane / 4 + 8; input: of the lane's eight
  if constexpr (format == Format::kInt8) {
    const int byte = static_cast<int>(at % 16);
    lane = static_cast<int>(at / 16 % kWarp), lower = byte % 2, input = byte / 4 * 2 + byte / 2 % 2;
  } else {
    const int element = static_cast<int>(at % 8), second_mma = static_cast<int>(at / 256 % 2);
    lane = static_cast<int>(at / 8 % kWarp), lower = element / 2 % 2, input = second_mma * 4 + element / 4 * 2 + element % 2;
  }
  return {.row = lane / 4 + lower * 8,
          .tile = static_cast<int>(piece / pieces),
          .input = static_cast<int>(piece % pieces) * kPiece + lane % 4 * 8 + input};
}

// The row of the weight that a row of a tile holds, or -1 for none.
__device__ __forceinline__ int output_of(const PackWeightParams& p, int tile, int row) {
  if (p.epilogue != Epilogue::kSiluMul) return tile * kTile + row < p.outputs ? tile * kTile + row : -1;
  // One lane has gate and up of an output: rows r and r + 8 of a tile.
  const int half = p.outputs / 2, of_half = tile * (kTile / 2) + row % 8;
  return of_half >= half ? -1 : row < 8 ? of_half : half + of_half;
}

constexpr int kPackThreads = 256;

template <Format format, typename Packed>  // Packed: the bits of a weight
__global__ void __launch_bounds__(kPackThreads) pack_weight_kernel(PackWeightParams p) {
  wait_for_previous_kernel();  // the next kernel must not start early: it may read the packed weight without waiting
  const int pieces = divide_up(p.inputs, kPiece), tiles = divide_up(p.outputs, kTile);
  const int64_t elements = static_cast<int64_t>(tiles) * pieces * kTile * kPiece;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x, step = int64_t{gridDim.x} * kPackThreads;
  for (int64_t at = first; at < elements; at += step) {
    const Source from = source_of<format>(at, pieces);
    const int output = output_of(p, from.tile, from.row);
    const bool inside = output >= 0 && from.input < p.inputs;
    static_cast<Packed*>(p.packed)[at] =
        inside ? static_cast<const Packed*>(p.weight)[static_cast<int64_t>(output) * p.inputs + from.input] : Packed{0};
  }
  if constexpr (format == Format::kInt8) {
    auto* scales = reinterpret_cast<float*>(static_cast<unsigned char*>(p.packed) + bytes_before_scales(p.outputs, p.inputs));
    for (int64_t row = first; row < int64_t{tiles} * kTile; row += step) {
      const int output = output_of(p, static_cast<int>(row / kTile), static_cast<int>(row % kTile));
      scales[row] = output >= 0 ? p.scale[output] : 0.0f;
    }
  }
}

}  // namespace

int64_t packed_outputs(int64_t outputs) { return (outputs + kTile - 1) / kTile * kTile; }
int64_t packed_inputs(int64_t inputs) { return (inputs + kPiece - 1) / kPiece * kPiece; }

cudaError_t pack_weight(const PackWeightParams& params, cudaStream_t stream) {
  const int64_t elements = packed_outputs(params.outputs) * packed_inputs(params.inputs);
  constexpr int64_t kMostBlocks = 1 << 16;
  const dim3 blocks(static_cast<unsigned>(elements / kPackThreads < kMostBlocks ? elements / kPackThreads : kMostBlocks));
  if (params.scale != nullptr)
    return launch<pack_weight_kernel<Format::kInt8, uint8_t>>(blocks, dim3(kPackThreads), 0, stream, params);
  return launch<pack_weight_kernel<Format::kBf16, uint16_t>>(blocks, dim3(kPackThreads), 0, stream, params);
}

cudaError_t linear(const LinearParams& params, cudaStream_t stream) {
  return params.int8 ? linear_int8(params, stream) : linear_bf16(params, stream);
}

}  // namespace ssd::cuda
