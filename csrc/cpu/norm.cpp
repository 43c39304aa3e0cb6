// embed, rms_norm and add_rms_norm: one pass over a row each.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cstring>

#include "parallel.h"
#include "run_dtype.h"

namespace ssd {
namespace {

constexpr int64_t kRowsAThread = 16;  // fewer are not worth waking a thread for

Tensor embed(const Tensor& ids, const Tensor& table) {
  const auto [rows, vocabulary, width] = check_embed(ids, table, kCpuDtypes);
  Tensor out = at::empty({rows, width}, table.options());
  const size_t bytes = static_cast<size_t>(width) * table.element_size();
  const auto* source = static_cast<const char*>(table.const_data_ptr());
  auto* target = static_cast<char*>(out.mutable_data_ptr());
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = id[r] >= 0 && id[r] < vocabulary ? id[r] : 0;
    std::memcpy(target + static_cast<size_t>(r) * bytes, source + static_cast<size_t>(row) * bytes, bytes);
  }
  return out;
}

void run(const float* x, float* residual, const float* weight, float eps, int64_t d, float* y) {
  kernels().rms_norm_float(x, residual, weight, eps, d, y);
}
void run(const bf16* x, bf16* residual, const bf16* weight, float eps, int64_t d, bf16* y) {
  kernels().rms_norm_bf16(x, residual, weight, eps, d, y);
}

Tensor normalise(const Tensor& x, const OptionalTensor& residual, const Tensor& weight, double eps) {
  const NormSizes sizes = check_rms_norm(x, residual, weight, kCpuDtypes);
  Tensor y = at::empty_like(x);
  const int64_t d = sizes.width;
  with_run_dtype(x, [&]<typename T>(T) {
    T* sum = residual.has_value() ? mutable_data<T>(*residual) : nullptr;
    parallel_for(sizes.rows, kRowsAThread, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        run(data<T>(x) + r * d, sum != nullptr ? sum + r * d : nullptr, data<T>(weight), static_cast<float>(eps), d,
            mutable_data<T>(y) + r * d);
    });
  });
  return y;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) { return normalise(x, std::nullopt, weight, eps); }

Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  return normalise(x, residual, weight, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("embed", embed);
  m.impl("rms_norm", rms_norm);
  m.impl("add_rms_norm", add_rms_norm);
}

}  // namespace ssd
