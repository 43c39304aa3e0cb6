// The CUDA back end's torch side: checks tensors, picks the current stream, and calls csrc/cuda through raw pointers.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "checks.h"
#include "cuda/kernels.h"

namespace ssd {
namespace {

// The dispatcher looks at one CUDA argument; a kernel reads them all.
void check_device(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK(t.device() == like.device(), name, " must be on ", like.device(), ", not ", t.device());
}

void move_kv(const Tensor& kv, const Tensor& src, const Tensor& dst) {
  check_run_dtype(kv, "kv", {at::kBFloat16, at::kHalf});
  check(kv, "kv", kv.scalar_type(), {-1, 2, -1, -1, -1, -1});
  check(src, "src", at::kInt, {-1});
  check(dst, "dst", at::kInt, {src.size(0)});
  check_device(src, "src", kv);
  check_device(dst, "dst", kv);
  const int64_t row_bytes = kv.size(4) * kv.size(5) * kv.element_size();
  TORCH_CHECK(row_bytes % 16 == 0, "kv must have places of a multiple of 16 bytes, not ", row_bytes);
  const c10::cuda::CUDAGuard guard(kv.device());
  C10_CUDA_CHECK(cuda::move_kv({.kv = kv.mutable_data_ptr(),
                                .src = src.const_data_ptr<int32_t>(),
                                .dst = dst.const_data_ptr<int32_t>(),
                                .planes = kv.size(0) * 2,
                                .places = kv.size(2) * kv.size(3),
                                .row_bytes = row_bytes,
                                .moves = static_cast<int32_t>(src.size(0))},
                               c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CUDA, m) { m.impl("move_kv", move_kv); }

}  // namespace ssd
