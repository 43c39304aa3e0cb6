// pack_weight and linear: the packed layout, and how the work is split. simd/linear.cpp has the inner loop and its floor.
//
// A packed weight is a list of blocks of sixteen outputs. A block is [in / 2, 16, 2] for bf16 and [in, 16] for float, padded
// with zeros. A block for int8 begins with its sixteen scales, which take the room of four inputs, and goes on as for bf16. For
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
#include "run_dtype.h"

namespace ssd {
namespace {

int64_t blocks_of(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

// How many weights are packed together: for silu_mul the gate's and the up projection's.
int64_t groups_of(Epilogue epilogue) { return epilogue == Epilogue::kSiluMul ? 2 : 1; }

int64_t padded(int64_t inputs) { return (inputs + 1) / 2 * 2; }

PackedShape packed_shape(const WeightSizes& sizes) {
  const int64_t groups = groups_of(sizes.epilogue);
  return {.outputs = groups * blocks_of(sizes.outputs / groups) * kBlock,
          .inputs = padded(sizes.inputs) + (sizes.int8 ? kScaleBytes / kBlock : 0)};
}

// How many consecutive inputs are neighbours in a packed weight and in a tile of x.
template <typename T>
constexpr int64_t kInputsTogether = sizeof(T) == sizeof(float) ? 1 : 2;

// Writes block i, of block_size elements, to packed + i * stride * block_size. scale: [outputs], or null.
template <typename T>
void pack(const T* weight, const float* scale, int64_t outputs, int64_t in, int64_t block_size, int64_t stride, T* packed) {
  constexpr int64_t kTogether = kInputsTogether<T>;
  parallel_for(blocks_of(outputs), 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kBlock; o < std::min(end * kBlock, outputs); ++o) {
      T* block = packed + o / kBlock * stride * block_size;
      if (scale != nullptr) {
        std::memcpy(block + o % kBlock * sizeof(float), scale + o, sizeof(float));
        block += kScaleBytes;
      }
      for (int64_t k = 0; k < in; ++k)
        block[(k / kTogether * kBlock + o % kBlock) * kTogether + k % kTogether] = weight[o * in + k];
    }
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
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t first = r / kRowTile * kRowTile, width = std::min<int64_t>(kRowTile, rows - first);
      auto* tile = reinterpret_cast<Together*>(mutable_data<T>(tiles) + first * padded_in) + (r - first);
      const T* row = data<T>(x) + r * in;
      for (int64_t k = 0; k < whole; ++k) std::memcpy(tile + k * width, row + k * kInputsTogether<T>, sizeof(Together));
      for (int64_t k = whole; k < steps; ++k) {
        tile[k * width] = {};
        if (k * kInputsTogether<T> < in) tile[k * width].inputs[0] = row[in - 1];
      }
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
  Tensor packed = huge_pages({shape.outputs, shape.inputs}, weight.options());
  const auto pack_groups = [&]<typename T>(T) {
    const float* scales = data_or_null<float>(scale);
    for (int64_t g = 0; g < groups; ++g)
      pack(data<T>(weight) + g * outputs * in, scales != nullptr ? scales + g * outputs : nullptr, outputs, in, block_size,
           groups, mutable_data<T>(packed) + g * block_size);
  };
  if (sizes.int8) {
    pack_groups(int8_t{});
  } else {
    with_run_dtype(weight, pack_groups);
  }
  return packed;
}

void run(const LinearTile<bf16>& tile) { kernels().linear_bf16(tile); }
void run(const LinearTile<float>& tile) { kernels().linear_float(tile); }
void run(const LinearTile<bf16, int8_t>& tile) { kernels().linear_int8(tile); }

// y: [rows, columns], run dtype or float32.
void multiply(const Tensor& x, const Tensor& weight, const LinearSizes& sizes, const OptionalTensor& bias,
              const OptionalTensor& residual, const Tensor& y, bool float32_out) {
  const bool gated = sizes.epilogue == Epilogue::kSiluMul;
  const int64_t rows = sizes.rows, columns = sizes.columns, padded_in = padded(sizes.inputs), blocks = blocks_of(columns);
  const Tensor x_tiles = rows == 1 && padded_in == sizes.inputs ? x : tile_rows(x, padded_in);
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
            .x = data<T>(x_tiles),
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
    parallel_for(blocks, 1, work, packed + weight.numel());
  };
  if (sizes.int8) {
    run_blocks(bf16{}, int8_t{});
  } else {
    with_run_dtype(x, [&]<typename T>(T) { run_blocks(T{}, T{}); });
  }
}

Tensor linear(const Tensor& x, const Tensor& weight, int64_t out_features, std::string_view epilogue_name,
              const OptionalTensor& bias, const OptionalTensor& residual, bool float32_out) {
  const LinearSizes sizes =
      check_linear(x, weight, out_features, epilogue_name, bias, residual, kCpuDtypes, packed_shape, true);
  Tensor y = at::empty({sizes.rows, sizes.columns}, x.options().dtype(float32_out ? at::kFloat : x.scalar_type()));
  multiply(x, weight, sizes, bias, residual, y, float32_out);
  return y;
}

void logits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  multiply(x, weight, check_logits(x, weight, bias, out, kCpuDtypes, packed_shape, true), bias, std::nullopt, out, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
  m.impl("logits", logits);
}

}  // namespace ssd
