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
  check_cpu_dtype(table, "table");
  check(ids, "ids", at::kInt, {-1});
  check(table, "table", table.scalar_type(), {-1, -1});
  TORCH_CHECK(table.size(0) > 0, "table must have at least one row");
  Tensor out = at::empty({ids.size(0), table.size(1)}, table.options());
  const size_t bytes = static_cast<size_t>(table.size(1)) * table.element_size();
  const auto* source = static_cast<const char*>(table.const_data_ptr());
  auto* target = static_cast<char*>(out.mutable_data_ptr());
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < ids.size(0); ++r) {
    const int64_t row = id[r] >= 0 && id[r] < table.size(0) ? id[r] : 0;
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
  check_cpu_dtype(x, "x");
  check(x, "x", x.scalar_type(), {-1, -1});
  check(residual, "residual", x.scalar_type(), {x.size(0), x.size(1)});
  check(weight, "weight", x.scalar_type(), {x.size(1)});
  Tensor y = at::empty_like(x);
  const int64_t d = x.size(1);
  with_run_dtype(x, [&]<typename T>(T) {
    T* sum = residual.has_value() ? mutable_data<T>(*residual) : nullptr;
    parallel_for(x.size(0), kRowsAThread, [&](int64_t begin, int64_t end) {
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
