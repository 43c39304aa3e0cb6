// embed and rms_norm: one pass over a row each.

#include <ATen/ops/empty.h>

#include <cstring>

#include "parallel.h"
#include "program.h"
#include "run_dtype.h"

namespace ssd {
namespace {

constexpr int64_t kRowsAThread = 16;  // for fewer rows a second thread does not pay

Tensor embed(const Tensor& ids, const Tensor& table) {
  const EmbedSizes sizes = check_embed(ids, table, kCpuDtypes);
  const int64_t rows = sizes.rows, vocabulary = sizes.vocabulary, width = sizes.width;
  Tensor out = at::empty({rows, width}, table.options());
  run_or_record([=] {
    const size_t bytes = static_cast<size_t>(width) * table.element_size();
    const auto* source = static_cast<const char*>(table.const_data_ptr());
    auto* target = static_cast<char*>(out.mutable_data_ptr());
    const int32_t* id = ids.const_data_ptr<int32_t>();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = id[r] >= 0 && id[r] < vocabulary ? id[r] : 0;
      std::memcpy(target + static_cast<size_t>(r) * bytes, source + static_cast<size_t>(row) * bytes, bytes);
    }
  });
  return out;
}

void normalise(const float* x, const float* weight, float eps, int64_t d, float* y) {
  kernels().rms_norm_float(x, weight, eps, d, y);
}
void normalise(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y) {
  kernels().rms_norm_bf16(x, weight, eps, d, y);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const NormSizes sizes = check_rms_norm(x, weight, kCpuDtypes);
  const int64_t rows = sizes.rows, d = sizes.width;
  Tensor y = at::empty({rows, d}, x.options());
  run_or_record([=] {
    with_run_dtype(x, [&]<typename T>(T) {
      parallel_for(rows, kRowsAThread, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          normalise(data<T>(x) + r * x.stride(0), data<T>(weight), static_cast<float>(eps), d, mutable_data<T>(y) + r * d);
      });
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("embed", embed);
  m.impl("rms_norm", rms_norm);
}

}  // namespace ssd
