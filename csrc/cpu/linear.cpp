// pack_weight and linear. The inner loop and its floor are in simd/linear.cpp; here are the layout and the work split.
//
// Packed layout, per block of sixteen outputs: bf16 [in / 2, 16, 2], float [in, 16]; sizes padded with zeros. For silu_mul the
// blocks of the gate and of the up projection alternate, and a work item is one of each: one stream over memory here too.
// Weights are packed in the order they are used in, so what is read next lies behind the weight at hand.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "huge_pages.h"
#include "parallel.h"
#include "run_dtype.h"

namespace ssd {
namespace {

enum class Epilogue { kNone, kAdd, kSiluMul, kFloat32 };

int64_t blocks_of(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

Epilogue parse_epilogue(std::string_view name) {
  if (name == "none") return Epilogue::kNone;
  if (name == "add") return Epilogue::kAdd;
  if (name == "silu_mul") return Epilogue::kSiluMul;
  TORCH_CHECK(name == "float32", "epilogue must be none, add, silu_mul or float32, not ", name);
  return Epilogue::kFloat32;
}

// Consecutive inputs that lie side by side in a packed weight or a tile of x.
template <typename T>
constexpr int64_t kInputsTogether = sizeof(T) == sizeof(float) ? 1 : 2;

// Blocks go to every `stride`th place of `packed`.
template <typename T>
void pack(const T* weight, int64_t outputs, int64_t in, int64_t padded_in, int64_t stride, T* packed) {
  constexpr int64_t kTogether = kInputsTogether<T>;
  parallel_for(blocks_of(outputs), 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kBlock; o < std::min(end * kBlock, outputs); ++o) {
      T* block = packed + o / kBlock * stride * kBlock * padded_in;
      for (int64_t k = 0; k < in; ++k)
        block[(k / kTogether * kBlock + o % kBlock) * kTogether + k % kTogether] = weight[o * in + k];
    }
  });
}

// x as LinearTile wants it: the rows of a tile side by side, so that the inner loop walks one pointer.
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

Tensor pack_weight(const Tensor& weight, std::string_view epilogue_name) {
  check_cpu_dtype(weight, "weight");
  check(weight, "weight", weight.scalar_type(), {-1, -1});
  const int64_t groups = parse_epilogue(epilogue_name) == Epilogue::kSiluMul ? 2 : 1;
  TORCH_CHECK(weight.size(0) % groups == 0, "weight must hold as many gate rows as up rows, not ", weight.size(0), " in all");
  const int64_t outputs = weight.size(0) / groups, in = weight.size(1), padded_in = (in + 1) / 2 * 2;
  const int64_t padded_outputs = blocks_of(outputs) * kBlock;
  Tensor packed = huge_pages({groups * padded_outputs, padded_in}, weight.options());
  with_run_dtype(weight, [&]<typename T>(T) {
    for (int64_t g = 0; g < groups; ++g)
      pack(data<T>(weight) + g * outputs * in, outputs, in, padded_in, groups,
           mutable_data<T>(packed) + g * kBlock * padded_in);
  });
  return packed;
}

void run(const LinearTile<bf16>& tile) { kernels().linear_bf16(tile); }
void run(const LinearTile<float>& tile) { kernels().linear_float(tile); }

struct Shape {
  int64_t rows, in, padded_in, outputs;  // outputs: columns of y
};

Tensor linear(const Tensor& x, const Tensor& weight, int64_t out_features, std::string_view epilogue_name,
              const OptionalTensor& bias, const OptionalTensor& residual) {
  const Epilogue epilogue = parse_epilogue(epilogue_name);
  const bool gated = epilogue == Epilogue::kSiluMul;
  check_cpu_dtype(x, "x");
  check(x, "x", x.scalar_type(), {-1, -1});
  const Shape shape{x.size(0), x.size(1), (x.size(1) + 1) / 2 * 2, gated ? out_features / 2 : out_features};
  const int64_t blocks = blocks_of(shape.outputs);
  TORCH_CHECK(out_features > 0 && (!gated || out_features % 2 == 0), "out_features must be positive", gated ? " and even" : "",
              ", not ", out_features);
  TORCH_CHECK(weight.dim() == 2 && weight.size(0) == blocks * kBlock * (gated ? 2 : 1) && weight.size(1) == shape.padded_in,
              "weight must come from pack_weight with out_features = ", out_features, ", in = ", shape.in,
              " and the same epilogue; its shape is ", weight.sizes());
  check(weight, "weight", x.scalar_type(), {-1, -1});
  check(bias, "bias", x.scalar_type(), {out_features});
  check(residual, "residual", x.scalar_type(), {shape.rows, shape.outputs});
  TORCH_CHECK(residual.has_value() == (epilogue == Epilogue::kAdd), "residual goes with the epilogue add, and only with it");

  Tensor y =
      at::empty({shape.rows, shape.outputs}, x.options().dtype(epilogue == Epilogue::kFloat32 ? at::kFloat : x.scalar_type()));
  const Tensor x_tiles = shape.rows == 1 && shape.padded_in == shape.in ? x : tile_rows(x, shape.padded_in);
  with_run_dtype(x, [&]<typename T>(T) {
    const T* packed = data<T>(weight);
    const T* biases = data_or_null<T>(bias);
    const T* residuals = data_or_null<T>(residual);
    const int64_t block_size = kBlock * shape.padded_in;
    const int64_t up_bias = gated ? shape.outputs : 0;  // the gate's come first
    const auto work = [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock;
        run(LinearTile<T>{
            .x = data<T>(x_tiles),
            .weight = packed + (gated ? 2 * block + 1 : block) * block_size,
            .gate = gated ? packed + 2 * block * block_size : nullptr,
            .bias = biases != nullptr ? biases + up_bias + first : nullptr,
            .gate_bias = gated && biases != nullptr ? biases + first : nullptr,
            .residual = residuals != nullptr ? residuals + first : nullptr,
            .y = static_cast<char*>(y.mutable_data_ptr()) + static_cast<size_t>(first) * y.element_size(),
            .rows = shape.rows,
            .in = shape.padded_in,
            .y_stride = shape.outputs,
            .outputs = static_cast<int>(std::min<int64_t>(kBlock, shape.outputs - first)),
            .float_y = epilogue == Epilogue::kFloat32,
        });
      }
    };
    parallel_for(blocks, 1, work, packed + weight.numel());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
}

}  // namespace ssd
