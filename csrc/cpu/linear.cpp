// pack_weight and linear. The inner loop and its floor are in simd/linear.cpp; here are the layout, the work split and the
// epilogues.
//
// Packed layout, per block of sixteen outputs: bf16 [in / 2, 16, 2], float [in, 16]; sizes padded with zeros. For silu_mul the
// gate's blocks come first, then the up projection's, and a work item is one block of each.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "run_dtype.h"

namespace ssd {
namespace {

int64_t blocks_of(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

Epilogue parse_epilogue(std::string_view name) {
  if (name == "none") return Epilogue::kNone;
  if (name == "add") return Epilogue::kAdd;
  if (name == "silu_mul") return Epilogue::kSiluMul;
  TORCH_CHECK(name == "float32", "epilogue must be none, add, silu_mul or float32, not ", name);
  return Epilogue::kFloat32;
}

template <typename T>
void pack(const T* weight, int64_t outputs, int64_t in, int64_t padded_in, T* packed) {
  constexpr int64_t kTogether = sizeof(T) == sizeof(float) ? 1 : 2;  // consecutive inputs of one output side by side
  parallel_for(blocks_of(outputs), 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kBlock; o < std::min(end * kBlock, outputs); ++o) {
      T* block = packed + o / kBlock * kBlock * padded_in;
      for (int64_t k = 0; k < in; ++k)
        block[(k / kTogether * kBlock + o % kBlock) * kTogether + k % kTogether] = weight[o * in + k];
    }
  });
}

Tensor pack_weight(const Tensor& weight, std::string_view epilogue_name) {
  check_cpu_dtype(weight, "weight");
  check(weight, "weight", weight.scalar_type(), {-1, -1});
  const int64_t groups = parse_epilogue(epilogue_name) == Epilogue::kSiluMul ? 2 : 1;
  TORCH_CHECK(weight.size(0) % groups == 0, "weight must hold as many gate rows as up rows, not ", weight.size(0), " in all");
  const int64_t outputs = weight.size(0) / groups, in = weight.size(1), padded_in = (in + 1) / 2 * 2;
  const int64_t padded_outputs = blocks_of(outputs) * kBlock;
  Tensor packed = at::zeros({groups * padded_outputs, padded_in}, weight.options());
  with_run_dtype(weight, [&]<typename T>(T) {
    for (int64_t g = 0; g < groups; ++g)
      pack(data<T>(weight) + g * outputs * in, outputs, in, padded_in,
           mutable_data<T>(packed) + g * padded_outputs * padded_in);
  });
  return packed;
}

void run(const LinearTile<bf16>& tile) { kernels().linear_bf16(tile); }
void run(const LinearTile<float>& tile) { kernels().linear_float(tile); }

struct Shape {
  int64_t rows, in, padded_in, outputs;  // outputs: columns of y
};

template <typename T, typename Y>
void finish(const float* sums, const Shape& shape, Epilogue epilogue, int64_t block_a, int64_t block_b, const T* bias,
            const T* residual, Y* y) {
  const auto biased = [&](float sum, int64_t o) { return bias != nullptr ? sum + as_float(bias[o]) : sum; };
  for (int64_t r = 0; r < shape.rows; ++r) {
    const float* a = sums + r * 2 * kBlock;
    if (epilogue == Epilogue::kSiluMul) {
      const int64_t first = block_a * kBlock, count = std::min<int64_t>(kBlock, shape.outputs - first);
      float gate[kBlock], up[kBlock], product[kBlock];
      for (int64_t i = 0; i < count; ++i) {
        gate[i] = biased(a[i], first + i);
        up[i] = biased(a[kBlock + i], shape.outputs + first + i);
      }
      kernels().silu_mul(gate, up, count, product);
      for (int64_t i = 0; i < count; ++i) round_to(product[i], y + r * shape.outputs + first + i);
      continue;
    }
    for (int half = 0; half < (block_a == block_b ? 1 : 2); ++half) {
      const int64_t first = (half == 0 ? block_a : block_b) * kBlock;
      const int64_t count = std::min<int64_t>(kBlock, shape.outputs - first);
      const int64_t at = r * shape.outputs + first;
      for (int64_t i = 0; i < count; ++i) {
        float value = biased(a[half * kBlock + i], first + i);
        if (residual != nullptr) value += as_float(residual[at + i]);
        round_to(value, y + at + i);
      }
    }
  }
}

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
  Tensor padded = x;
  if (shape.padded_in != shape.in) {  // the last pair of inputs must end in a zero
    padded = at::zeros({shape.rows, shape.padded_in}, x.options());
    padded.narrow(1, 0, shape.in).copy_(x);
  }
  const int64_t items = gated ? blocks : (blocks + 1) / 2;
  with_run_dtype(x, [&]<typename T>(T) {
    parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> sums;
      sums.resize(static_cast<size_t>(shape.rows * 2 * kBlock));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t a = gated ? item : 2 * item;
        const int64_t b = gated ? item + blocks : std::min(a + 1, blocks - 1);
        const T* packed = data<T>(weight);
        const int64_t block_size = kBlock * shape.padded_in;
        run(LinearTile<T>{data<T>(padded), packed + a * block_size, packed + b * block_size, sums.data(), shape.rows, shape.in,
                          shape.padded_in});
        const auto write = [&](auto* out) {
          finish(sums.data(), shape, epilogue, a, b, data_or_null<T>(bias), data_or_null<T>(residual), out);
        };
        if (epilogue == Epilogue::kFloat32) {
          write(mutable_data<float>(y));
        } else {
          write(mutable_data<T>(y));
        }
      }
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear", linear);
}

}  // namespace ssd
