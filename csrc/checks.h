// Checks of one tensor, which run before an op takes its raw pointer. An error names the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>

namespace ssd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A size of -1 in `shape` allows any size. inner: how many of the last dimensions must be contiguous (-1: all of them).
inline void check(const Tensor& t, const char* name, at::ScalarType dtype, std::initializer_list<int64_t> shape,
                  int64_t inner = -1) {
  TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", dtype, ", not ", t.scalar_type());
  TORCH_CHECK(t.dim() == static_cast<int64_t>(shape.size()), name, " must have ", shape.size(), " dimensions, not ", t.dim());
  int64_t i = 0;
  for (const int64_t size : shape) {
    TORCH_CHECK(size < 0 || t.size(i) == size, name, " must have size ", size, " in dimension ", i, ", not ", t.size(i));
    ++i;
  }
  if (t.numel() == 0) return;
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= (inner < 0 ? 0 : t.dim() - inner); --d) {
    TORCH_CHECK(t.size(d) <= 1 || t.stride(d) == expected, name, " must be contiguous",
                inner < 0 ? "" : " in its last dimensions");
    expected *= t.size(d);
  }
}

inline void check(const OptionalTensor& t, const char* name, at::ScalarType dtype, std::initializer_list<int64_t> shape,
                  int64_t inner = -1) {
  if (t.has_value()) check(*t, name, dtype, shape, inner);
}

inline void check_run_dtype(const Tensor& t, const char* name, at::ArrayRef<at::ScalarType> allowed) {
  for (const at::ScalarType dtype : allowed)
    if (t.scalar_type() == dtype) return;
  TORCH_CHECK(false, name, " must have one of the dtypes ", allowed, ", not ", t.scalar_type());
}

template <typename T>
const T* pointer_or_null(const OptionalTensor& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

}  // namespace ssd
