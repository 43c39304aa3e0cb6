// y = x Wᵀ for few rows of x. A decode step spends most of its time here. Floor: the bytes of W / memory bandwidth.
//
// W is read once, as the A operand of mma (16 outputs x 16 inputs). Rows of x are the columns of the B operand, eight at a
// time. pack_weight orders W so that a lane needs runs of 16 bytes of each 16 x 32 piece, two for bf16 and one for int8, and a
// warp's load is contiguous. Every lane copies its own operands to shared memory, many pieces ahead, and reads them back itself.
// So the pipeline is as deep as shared memory allows and needs no barrier. The copies of the first weights start before the
// previous kernel has ended, because no kernel writes weights.
//
// int8 weights become bf16 in registers, exactly; so x is not rounded. The scale of an output multiplies its sum.
//
// Row invariance: the inputs are cut into kSegments segments, which depend on the weight's width alone. One warp sums a segment
// in order, and the sums of the segments are added in order. How many outputs a block takes, and how many warps share its
// segments, changes no bit.
//
// Versions, on an H100: µs of Llama-3.1-8B's down (4096 x 14336) at 1 row and 64, and of Qwen3-0.6B's attention_out (1024 x 2048)
// at 24 rows and 64:
//   one tile a block and 6 stages up to 8 rows, two tiles above that   44.6   59.5   6.7   11.5
//   tiles and stages by shape; the residual is read before the sums    40.2   59.5   4.4   11.5
//   41 to 64 rows in two blocks, with more warps                       40.2   52.7   4.4    5.5
//   int8, with the tiles of bf16                                       27.4   45.7   4.1    9.9
//   int8, with tiles of its own                                        22.6   38.1   3.9    5.8
#pragma once

#include "elements.cuh"
#include "launch.h"

namespace ssd::cuda {

enum class Format { kBf16, kInt8 };  // of a weight

constexpr int kTile = 16;    // outputs of an mma
constexpr int kPiece = 32;   // inputs of two mmas; a lane's share of a row of x is 16 bytes
constexpr int kColumns = 8;  // rows of x in an mma
constexpr int kSegments = 8;
constexpr int kCopyBytes = 16;  // of a cp.async
constexpr int kEarlySums = 2;   // a thread with so few float4s of sums loads the residual before the multiplications

// The work of a block: `tiles` tiles of outputs and `columns` groups of kColumns rows, with `warps` warps and `stages` pieces
// in a pipeline.
template <Format weight_format, int tile_count, int column_count, int warp_count, int stage_count>
struct Config {
  static constexpr Format format = weight_format;
  static constexpr int tiles = tile_count, columns = column_count, warps = warp_count, stages = stage_count;
  static constexpr int threads = warps * kWarp;
  static constexpr int runs = format == Format::kInt8 ? 1 : 2;                       // of a lane, in a piece of the weight
  static constexpr int copies = tiles * runs + columns;                              // of a lane, for a piece
  static constexpr int shared_bytes = warps * stages * copies * kWarp * kCopyBytes;  // [warp][stage][copy][lane]
  static constexpr int sums = tiles * columns * kWarp;                               // float4s
  static_assert(shared_bytes >= warps * sums * static_cast<int>(sizeof(float4)) && shared_bytes <= 99 * 1024);
};

// Turns four int8s into pairs of bf16: bytes 0 and 2, and bytes 1 and 3. 0x4300 | (b & 0x7f) is 128 + (b & 0x7f) as a bf16, and
// 0x4300 | (b & 0x80) is 128, or 256 for a negative b. Their difference is b.
__device__ __forceinline__ void widen(uint32_t bytes, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kLow = 0x007f007f, kSign = 0x00800080, kBase = 0x43004300;
  const uint32_t next = bytes >> 8;
  even = subtract_pairs((bytes & kLow) | kBase, (bytes & kSign) | kBase);
  odd = subtract_pairs((next & kLow) | kBase, (next & kSign) | kBase);
}

// Copies and multiplies the pieces of a segment, for one lane.
template <typename C>
class Stream {
 public:
  __device__ __forceinline__ Stream(const LinearParams& p, uint4* shared)
      : p_(p),
        lane_(static_cast<int>(threadIdx.x) % kWarp),
        pieces_(divide_up(p.inputs, kPiece)),
        first_tile_(static_cast<int>(blockIdx.y) * C::tiles),
        first_row_(static_cast<int>(blockIdx.x) * C::columns * kColumns),
        shared_(shared + static_cast<int>(threadIdx.x) / kWarp * C::stages * C::copies * kWarp + lane_) {}

  __device__ __forceinline__ void copy_weight(int piece, int stage) const {
    const int all_tiles = divide_up(p_.outputs, kTile);
#pragma unroll
    for (int tile = 0; tile < C::tiles; ++tile) {
      const int64_t at = (static_cast<int64_t>(first_tile_ + tile) * pieces_ + piece) * C::runs * kWarp + lane_;
      const uint4* from = static_cast<const uint4*>(p_.weight) + at;
#pragma unroll
      for (int run = 0; run < C::runs; ++run)
        cp_async(place(stage, C::runs * tile + run), from + run * kWarp, first_tile_ + tile < all_tiles);
    }
  }

  __device__ __forceinline__ void copy_rows(int piece, int stage) const {
    const int input = piece * kPiece + lane_ % 4 * 8;
#pragma unroll
    for (int column = 0; column < C::columns; ++column) {
      const int row = first_row_ + column * kColumns + lane_ / 4;
      cp_async_cached(place(stage, C::runs * C::tiles + column),
                      static_cast<const Element*>(p_.x) + static_cast<int64_t>(row) * p_.inputs + input,
                      row < p_.rows && input < p_.inputs);
    }
  }

  __device__ __forceinline__ void multiply(int stage, float (&sum)[C::tiles][C::columns][4]) const {
    uint4 x[C::columns];
#pragma unroll
    for (int column = 0; column < C::columns; ++column) x[column] = *place(stage, C::runs * C::tiles + column);
#pragma unroll
    for (int tile = 0; tile < C::tiles; ++tile) {
      uint32_t first[4], second[4];  // of the two mmas of a piece
      load_weight(stage, tile, first, second);
#pragma unroll
      for (int column = 0; column < C::columns; ++column) {
        mma(sum[tile][column], first, {x[column].x, x[column].y});
        mma(sum[tile][column], second, {x[column].z, x[column].w});
      }
    }
  }

 private:
  __device__ __forceinline__ void load_weight(int stage, int tile, uint32_t (&first)[4], uint32_t (&second)[4]) const {
    const uint4 run = *place(stage, C::runs * tile);
    if constexpr (C::format == Format::kInt8) {
      widen(run.x, first[0], first[1]);
      widen(run.y, first[2], first[3]);
      widen(run.z, second[0], second[1]);
      widen(run.w, second[2], second[3]);
    } else {
      const uint4 next = *place(stage, C::runs * tile + 1);
      first[0] = run.x, first[1] = run.y, first[2] = run.z, first[3] = run.w;
      second[0] = next.x, second[1] = next.y, second[2] = next.z, second[3] = next.w;
    }
  }

  __device__ __forceinline__ uint4* place(int stage, int copy) const { return shared_ + (stage * C::copies + copy) * kWarp; }

  const LinearParams& p_;
  int lane_, pieces_, first_tile_, first_row_;
  uint4* shared_;
};

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ void write_output(const LinearParams& p, int64_t at, float value) {
  if (p.float32_out) {
    static_cast<float*>(p.y)[at] = value;
  } else {
    static_cast<Element*>(p.y)[at] = rounded(value);
  }
}

// Four results of a lane: rows row and row + 1, at outputs output and output + 8.
struct LaneOutputs {
  int row, output;
  __device__ __forceinline__ int row_of(int i) const { return row + i % 2; }
  __device__ __forceinline__ int output_of(int i) const { return output + i / 2 * 8; }
  __device__ __forceinline__ bool exists(const LinearParams& p, int i) const {
    return row_of(i) < p.rows && output_of(i) < p.outputs;
  }
  __device__ __forceinline__ int64_t at(const LinearParams& p, int i) const {
    return static_cast<int64_t>(row_of(i)) * p.outputs + output_of(i);
  }
};

// The residual of four outputs, or zeros. All loads come before the first output is written, so they overlap.
__device__ __forceinline__ float4 residual_of(const LinearParams& p, const LaneOutputs& outputs) {
  const auto load = [&](int i) {
    return outputs.exists(p, i) ? to_float(static_cast<const Element*>(p.residual)[outputs.at(p, i)]) : 0.0f;
  };
  return p.epilogue == Epilogue::kAdd ? float4{load(0), load(1), load(2), load(3)} : float4{0.0f, 0.0f, 0.0f, 0.0f};
}

// Writes four outputs, after bias and residual.
__device__ __forceinline__ void finish(const LinearParams& p, const LaneOutputs& outputs, const float4& sum,
                                       const float4& residual) {
  const auto write = [&](int i, float value, float added) {
    if (!outputs.exists(p, i)) return;
    if (p.bias != nullptr) value += to_float(static_cast<const Element*>(p.bias)[outputs.output_of(i)]);
    if (p.epilogue == Epilogue::kAdd) value += added;
    write_output(p, outputs.at(p, i), value);
  };
  write(0, sum.x, residual.x);
  write(1, sum.y, residual.y);
  write(2, sum.z, residual.z);
  write(3, sum.w, residual.w);
}

__device__ __forceinline__ void finish_gated(const LinearParams& p, int row, int output, float gate, float up) {
  const int half = p.outputs / 2;
  if (row >= p.rows || output >= half) return;
  if (p.bias != nullptr) {
    gate += to_float(static_cast<const Element*>(p.bias)[output]);
    up += to_float(static_cast<const Element*>(p.bias)[half + output]);
  }
  write_output(p, static_cast<int64_t>(row) * half + output, silu(gate) * up);
}

// The scales of an int8 weight come after it, one for each packed row.
__host__ __device__ __forceinline__ int64_t bytes_before_scales(int outputs, int inputs) {
  return static_cast<int64_t>(divide_up(outputs, kTile)) * kTile * divide_up(inputs, kPiece) * kPiece;
}

// The scales of a lane's packed rows: row lane / 4 of the tile, and the one 8 rows below. For kSiluMul: gate's and up's.
__device__ __forceinline__ float2 scales_of(const LinearParams& p, int packed_row) {
  const auto* scales =
      reinterpret_cast<const float*>(static_cast<const unsigned char*>(p.weight) + bytes_before_scales(p.outputs, p.inputs));
  const bool exists = packed_row < divide_up(p.outputs, kTile) * kTile;
  return exists ? make_float2(scales[packed_row], scales[packed_row + kTile / 2]) : make_float2(0.0f, 0.0f);
}

template <typename C>
__global__ void __launch_bounds__(C::threads) linear_kernel(LinearParams p) {
  constexpr int kSums = divide_up(C::sums, C::threads);
  uint4* shared = shared_memory<uint4>();
  float4* parts = shared_memory<float4>();  // [warp][tile][column][lane]; used when the pipeline is empty
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, pieces = divide_up(p.inputs, kPiece);
  const Stream<C> stream(p, shared);
  float4 total[kSums], residual[kSums];
  float2 scale[kSums];  // of int8 weights
#pragma unroll
  for (int i = 0; i < kSums; ++i) total[i] = {0.0f, 0.0f, 0.0f, 0.0f};
  const auto outputs_of = [&](int i) -> LaneOutputs {  // of total[i]
    const int at = i * C::threads + thread, lane = at % kWarp, column = at / kWarp % C::columns;
    const int tile = static_cast<int>(blockIdx.y) * C::tiles + at / kWarp / C::columns;
    return {(static_cast<int>(blockIdx.x) * C::columns + column) * kColumns + lane % 4 * 2, tile * kTile + lane / 4};
  };
  const auto load_scale_and_residual = [&] {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      if (i * C::threads + thread >= C::sums) break;
      if constexpr (C::format == Format::kInt8) scale[i] = scales_of(p, outputs_of(i).output);
      residual[i] = residual_of(p, outputs_of(i));
    }
  };

#pragma unroll 1
  for (int pass = 0; pass < kSegments / C::warps; ++pass) {
    const int segment = pass * C::warps + warp;
    const int begin = segment * pieces / kSegments, end = (segment + 1) * pieces / kSegments;
#pragma unroll
    for (int stage = 0; stage < C::stages - 1; ++stage)
      if (begin + stage < end) stream.copy_weight(begin + stage, stage);
    if (pass == 0) {
      // In this order: if the next kernel could start before this wait is over, three kernels would run at once. The third
      // could then be given memory that the first still reads.
      wait_for_previous_kernel();
      let_next_kernel_start();
      if (kSums <= kEarlySums) load_scale_and_residual();
    }
#pragma unroll
    for (int stage = 0; stage < C::stages - 1; ++stage) {
      if (begin + stage < end) stream.copy_rows(begin + stage, stage);
      cp_async_commit();
    }

    float sum[C::tiles][C::columns][4] = {};
    int stage = 0;
#pragma unroll 1
    for (int piece = begin; piece < end; ++piece) {
      cp_async_wait<C::stages - 2>();
      stream.multiply(stage, sum);
      const int ahead = piece + C::stages - 1, free_stage = stage == 0 ? C::stages - 1 : stage - 1;
      if (ahead < end) {
        stream.copy_weight(ahead, free_stage);
        stream.copy_rows(ahead, free_stage);
      }
      cp_async_commit();
      stage = stage == C::stages - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();

    __syncthreads();  // no warp reads its pipeline any more
#pragma unroll
    for (int tile = 0; tile < C::tiles; ++tile)
#pragma unroll
      for (int column = 0; column < C::columns; ++column) {
        const float (&s)[4] = sum[tile][column];
        parts[warp * C::sums + (tile * C::columns + column) * kWarp + thread % kWarp] = {s[0], s[1], s[2], s[3]};
      }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int at = i * C::threads + thread;
      if (at >= C::sums) break;
#pragma unroll
      for (int w = 0; w < C::warps; ++w) {
        const float4 part = parts[w * C::sums + at];
        total[i] = {total[i].x + part.x, total[i].y + part.y, total[i].z + part.z, total[i].w + part.w};
      }
    }
    __syncthreads();
  }

  if (kSums > kEarlySums) load_scale_and_residual();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    if (i * C::threads + thread >= C::sums) break;
    const LaneOutputs outputs = outputs_of(i);
    if constexpr (C::format == Format::kInt8)
      total[i] = {total[i].x * scale[i].x, total[i].y * scale[i].x, total[i].z * scale[i].y, total[i].w * scale[i].y};
    if (p.epilogue == Epilogue::kSiluMul) {
      const int output = outputs.output / kTile * (kTile / 2) + outputs.output % kTile;
      finish_gated(p, outputs.row, output, total[i].x, total[i].z);
      finish_gated(p, outputs.row + 1, output, total[i].y, total[i].w);
    } else {
      finish(p, outputs, total[i], residual[i]);
    }
  }
}

template <typename C>
cudaError_t start_linear(const LinearParams& p, cudaStream_t stream) {
  // Row groups are innermost: groups that share weights run at the same time, and all but the first find them in the L2 cache.
  const auto row_groups = static_cast<unsigned>(divide_up(p.rows, C::columns * kColumns));
  const auto tile_groups = static_cast<unsigned>(divide_up(divide_up(p.outputs, kTile), C::tiles));
  return launch<linear_kernel<C>>(dim3(row_groups, tile_groups), dim3(C::threads), C::shared_bytes, stream, p);
}

// One source file a format.
cudaError_t linear_bf16(const LinearParams& params, cudaStream_t stream);
cudaError_t linear_int8(const LinearParams& params, cudaStream_t stream);

}  // namespace ssd::cuda
