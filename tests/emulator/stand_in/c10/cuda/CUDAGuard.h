// Replaces torch's header: there is one device, the CPU.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

class CUDAGuard {
 public:
  explicit CUDAGuard(Device) {}
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;
};

}  // namespace c10::cuda
