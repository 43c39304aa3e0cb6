// Shared by the CUDA ops: checks of tensors beyond csrc/arguments.h, and the set-up of a launch on the current stream.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <cstdint>

#include "../arguments.h"
#include "../cuda/kernels.h"

namespace ssd {

inline constexpr std::array kCudaDtypes{at::kBFloat16};

inline const void* raw_or_null(const OptionalTensor& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }

// Kernels copy 16 bytes at a time, so a view must start at a multiple of 16 bytes.
inline void check_aligned(const Tensor& t, const char* name) {
  TORCH_CHECK(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0, name, " must start at a multiple of 16 bytes on CUDA");
}

// A size as a kernel takes it. Call has refused sizes that do not fit.
inline int32_t int32(int64_t size) { return static_cast<int32_t>(size); }

bool is_capturing(cudaStream_t stream);

// `count` zeros on the device of `like`, in which the blocks of one launch on `stream` count their arrivals. Every kernel
// leaves them zero. So all launches of a stream share them, but different streams, and graphs that were captured separately, do
// not.
int32_t* arrival_counters(int64_t count, const Tensor& like, c10::cuda::CUDAStream stream);

// One call of an op. It checks that all arguments are on one device, makes that device current and holds its current stream.
class Call {
 public:
  struct Argument {
    Argument(const char* name, const Tensor& tensor) : name(name), tensor(&tensor) {}
    Argument(const char* name, const OptionalTensor& tensor) : name(name), tensor(tensor.has_value() ? &*tensor : nullptr) {}
    const char* name;
    const Tensor* tensor;  // null for an optional argument that is left out
  };

  Call(std::initializer_list<Argument> arguments)
      : first_(checked(arguments)), guard_(first_.device()), stream_(c10::cuda::getCurrentCUDAStream()) {}

  cudaStream_t stream() const { return stream_; }

  Tensor empty(at::IntArrayRef shape, at::ScalarType dtype) const { return at::empty(shape, first_.options().dtype(dtype)); }

  // Memory for one launch. The allocator gives it to no other stream before the launch has ended.
  Tensor workspace(size_t bytes) const { return empty({static_cast<int64_t>(bytes)}, at::kByte); }

  int32_t* arrivals(int64_t count) const { return arrival_counters(count, first_, stream_); }

 private:
  // The dispatcher checks the device of one argument only, and kernels count in 32 bits.
  static const Tensor& checked(std::initializer_list<Argument> arguments) {
    const Tensor& first = *arguments.begin()->tensor;
    for (const Argument& argument : arguments) {
      if (argument.tensor == nullptr) continue;
      const Tensor& tensor = *argument.tensor;
      TORCH_CHECK(tensor.device() == first.device(), argument.name, " must be on ", first.device(), " like ",
                  arguments.begin()->name, ", not on ", tensor.device());
      for (int64_t d = 0; d < tensor.dim(); ++d)
        TORCH_CHECK(tensor.size(d) <= INT32_MAX, argument.name, " must have fewer than 2^31 entries in dimension ", d, ", not ",
                    tensor.size(d));
    }
    return first;
  }

  const Tensor& first_;
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

}  // namespace ssd
