// pack_weight and linear: the packed layout, and how the work is split. simd/linear.cpp has the inner loop and its floor.
//
// A packed weight is a list of blocks of sixteen outputs. A block is [in / 2, 16, 2] for bf16 and [in, 16] for float, padded
// with zeros. A block for int8 begins with its sixteen scales, and goes on as [in / 4, 16, 4], for whole groups of inputs. For
// silu_mul, blocks of the gate and of the up projection alternate, and one work item is a pair of them: the memory is still
// read as one stream. Weights are packed in the order of their use, so the weight that is needed next follows the present one
// in memory.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "huge_pages.h"
#include "parallel.h"
#include "program.h"
#include "run_dtype.h"

namespace ssd {
namespace {

int64_t blocks_of(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

// How many weights are packed together: for silu_mul the gate's and the up projection's.
int64_t groups_of(Epilogue epilogue) { return epilogue == Epilogue::kSiluMul ? 2 : 1; }

// The inputs of a packed block.
int64_t padded(int64_t inputs, bool int8) {
  const int64_t together = int8 ? kGroup : 2;
  return (inputs + together - 1) / together * together;
}

PackedShape packed_shape(const WeightSizes& sizes) {
  const int64_t groups = groups_of(sizes.epilogue);
  return {.outputs = groups * blocks_of(sizes.outputs / groups) * kBlock,
          .inputs = padded(sizes.inputs, sizes.int8) + (sizes.int8 ? kScaleBytes / kBlock : 0)};
}

// How many consecutive inputs of an output are neighbours in a packed block.
template <typename T>
constexpr int64_t kInputsTogether = 4 / sizeof(T);

inline float packed_value(float weight) { return weight; }
inline bf16 packed_value(bf16 weight) { return weight; }
inline uint8_t packed_value(int8_t weight) { return static_cast<uint8_t>(weight + 128); }

// Writes block i, of block_size elements, to packed + i * stride * block_size. scale: [outputs], or null.
template <typename T, typename W>
void pack(const T* weight, const float* scale, int64_t outputs, int64_t in, int64_t block_size, int64_t stride, W* packed) {
  constexpr int64_t kTogether = kInputsTogether<T>;
  parallel_for(blocks_of(outputs), 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kBlock; o < std::min(end * kBlock, outputs); ++o) {
      W* block = packed + o / kBlock * stride * block_size;
      if (scale != nullptr) {
        std::memcpy(block + o % kBlock * sizeof(float), scale + o, sizeof(float));
        block += kScaleBytes;
      }
      for (int64_t k = 0; k < in; ++k)
        block[(k / kTogether * kBlock + o % kBlock) * kTogether + k % kTogether] = packed_value(weight[o * in + k]);
    }
  });
}

// Calls f(first row, rows) for each tile of rows.
template <typename F>
void for_each_tile(int64_t rows, F&& f) {
  constexpr int64_t kRows = kRowTile;
  parallel_for((rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kRows; first < std::min(end * kRows, rows); first += kRows)
      f(first, std::min(kRows, rows - first));
  });
}

// x in the layout of LinearTile: the rows of a tile are interleaved, so that the inner loop advances one pointer.
Tensor tile_rows(const Tensor& x, int64_t padded_in) {
  const int64_t rows = x.size(0), in = x.size(1);
  Tensor tiles = at::empty({rows, padded_in}, x.options());
  with_run_dtype(x, [&]<typename T>(T) {
    struct Together {
      T inputs[kInputsTogether<T>];
    };
    const int64_t steps = padded_in / kInputsTogether<T>, whole = in / kInputsTogether<T>;
    for_each_tile(rows, [&](int64_t first, int64_t width) {
      for (int64_t r = 0; r < width; ++r) {
        auto* tile = reinterpret_cast<Together*>(mutable_data<T>(tiles) + first * padded_in) + r;
        const T* row = data<T>(x) + (first + r) * in;
        for (int64_t k = 0; k < whole; ++k) std::memcpy(tile + k * width, row + k * kInputsTogether<T>, sizeof(Together));
        for (int64_t k = whole; k < steps; ++k) {
          tile[k * width] = {};
          if (k * kInputsTogether<T> < in) tile[k * width].inputs[0] = row[in - 1];
        }
      }
    });
  });
  return tiles;
}

// x rounded to int8, in the same layout: the x of int8 weights.
Tensor round_rows(const Tensor& x, int64_t padded_in) {
  const int64_t rows = x.size(0), in = x.size(1), row_bytes = padded_in / kGroup * kGroupBytes;
  Tensor tiles = at::empty({rows, row_bytes}, x.options().dtype(at::kByte));
  char* place = static_cast<char*>(tiles.mutable_data_ptr());
  for_each_tile(rows, [&](int64_t first, int64_t width) {
    if (x.scalar_type() == at::kFloat) {
      kernels().round_rows_float(data<float>(x) + first * in, width, in, place + first * row_bytes);
    } else {
      kernels().round_rows_bf16(data<bf16>(x) + first * in, width, in, place + first * row_bytes);
    }
  });
  return tiles;
}

Tensor pack_weight(const Tensor& weight, std::string_view epilogue_name, const OptionalTensor& scale) {
  constexpr std::array kDtypes{at::kFloat, at::kBFloat16, at::kChar};
  const WeightSizes sizes = check_pack_weight(weight, epilogue_name, scale, kDtypes);
  const PackedShape shape = packed_shape(sizes);
  const int64_t groups = groups_of(sizes.epilogue), outputs = sizes.outputs / groups, in = sizes.inputs;
  const int64_t block_size = kBlock * shape.inputs;
  const float* scales = data_or_null<float>(scale);
  const auto options = weight.options().dtype(sizes.int8 ? at::kByte : weight.scalar_type());
  Tensor packed = huge_pages({shape.outputs, shape.inputs}, options);
  const auto pack_groups = [&]<typename T, typename W>(T, W) {
    for (int64_t g = 0; g < groups; ++g)
      pack(data<T>(weight) + g * outputs * in, scales != nullptr ? scales + g * outputs : nullptr, outputs, in, block_size,
           groups, mutable_data<W>(packed) + g * block_size);
  };
  if (sizes.int8) {
    pack_groups(int8_t{}, uint8_t{});
  } else {
    with_run_dtype(weight, [&]<typename T>(T) { pack_groups(T{}, T{}); });
  }
  return packed;
}

void run(const LinearTile<bf16>& tile) { kernels().linear_bf16(tile); }
void run(const LinearTile<float>& tile) { kernels().linear_float(tile); }
void run(const LinearTile<bf16, uint8_t>& tile) { kernels().linear_int8_bf16(tile); }
void run(const LinearTile<float, uint8_t>& tile) { kernels().linear_int8_float(tile); }

// y: [rows, columns], run dtype or float32.
void multiply(const Tensor& x, const Tensor& weight, const LinearSizes& sizes, const OptionalTensor& bias,
              const OptionalTensor& residual, const Tensor& y, bool float32_out) {
  const bool gated = sizes.epilogue == Epilogue::kSiluMul;
  const int64_t rows = sizes.rows, columns = sizes.columns, padded_in = padded(sizes.inputs, sizes.int8);
  const Tensor x_tiles = sizes.int8                               ? round_rows(x, padded_in)
                         : rows == 1 && padded_in == sizes.inputs ? x
                                                                  : tile_rows(x, padded_in);
  const auto run_blocks = [&]<typename T, typename W>(T, W) {
    const W* packed = data<W>(weight);
    const T* biases = data_or_null<T>(bias);
    const T* residuals = data_or_null<T>(residual);
    const int64_t block_size = kBlock * weight.size(1);
    const int64_t up_bias = gated ? columns : 0;  // the gate's biases come first
    const auto work = [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock;
        run(LinearTile<T, W>{
            .x = x_tiles.const_data_ptr(),
            .weight = packed + (gated ? 2 * block + 1 : block) * block_size,
            .gate = gated ? packed + 2 * block * block_size : nullptr,
            .bias = biases != nullptr ? biases + up_bias + first : nullptr,
            .gate_bias = gated && biases != nullptr ? biases + first : nullptr,
            .residual = residuals != nullptr ? residuals + first : nullptr,
            .y = static_cast<char*>(y.mutable_data_ptr()) + static_cast<size_t>(first) * y.element_size(),
            .rows = rows,
            .in = padded_in,
            .y_stride = columns,
            .outputs = static_cast<int>(std::min<int64_t>(kBlock, columns - first)),
            .float32_out = float32_out,
        });
      }
    };
    parallel_for(blocks_of(columns), 1, work, packed + weight.numel());
  };
  with_run_dtype(x, [&]<typename T>(T) { sizes.int8 ? run_blocks(T{}, uint8_t{}) : run_blocks(T{}, T{}); });
}

Tensor linear(const Tensor& x, const Tensor& weight, int64_t out_features, std::string_view epilogue_name,
              const OptionalTensor& bias, const OptionalTensor& residual, bool float32_out) {
  const LinearSizes sizes = check_linear(x, weight, out_features, epilogue_name, bias, residual, kCpuDtypes, packed_shape);
  Tensor y = at::empty({sizes.rows, sizes.columns}, x.options().dtype(float32_out ? at::kFloat : x.scalar_type()));
  run_or_record([=] { multiply(x, weight, sizes, bias, residual, y, float32_out); });
  return y;
}

void logits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  const LinearSizes sizes = check_logits(x, weight, bias, out, kCpuDtypes, packed_shape);
  run_or_record([=] { multiply(x, weight, sizes, bias, std::nullopt, out, true); });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
  m.impl("logits", logits);
}

}  // namespace ssd
