// launch<kernel>(..) starts every kernel. A kernel takes one parameter struct by value.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "ptx.h"

namespace ssd::cuda {

#if defined(__CUDACC__)

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // a kernel whose blocks need more must be allowed to have it

// Properties of a kernel that its launches need. They are read once for each device.
struct KernelTraits {
  std::atomic<uint64_t> known_on{0};     // bit d: they are known for device d
  std::atomic<uint64_t> overlaps_on{0};  // bit d: on device d it may start early, because it waits itself (ptx.h)
};

// SSD_PDL=0 in the environment keeps every kernel from starting before the one ahead of it has ended. Read once a process.
inline bool overlap_is_allowed() {
  static const bool allowed = [] {
    const char* value = std::getenv("SSD_PDL");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return allowed;
}

inline cudaError_t learn_traits(const void* kernel, size_t shared_bytes, KernelTraits& traits, bool& overlaps) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((traits.known_on.load(std::memory_order_acquire) & bit) == 0) {
    if (shared_bytes > kDefaultSharedBytes) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
      if (error != cudaSuccess) return error;
    }
    // Code for an older architecture, which the driver translates to this one, does not contain the wait.
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    if (attributes.ptxVersion >= 90 && overlap_is_allowed()) traits.overlaps_on.fetch_or(bit);
    traits.known_on.fetch_or(bit, std::memory_order_release);
  }
  overlaps = (traits.overlaps_on.load(std::memory_order_relaxed) & bit) != 0;
  return cudaSuccess;
}

// An empty grid launches nothing and is no error. Every launch of a kernel has the same shared_bytes. Returns the error of the
// launch; errors inside the kernel show later. On Hopper a kernel may start while the one ahead of it in the stream still runs.
// So every kernel calls wait_for_previous_kernel() before it touches memory that another kernel reads or writes.
template <auto kernel, typename Params>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Params params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  static KernelTraits traits;
  bool overlaps = false;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = learn_traits(function, shared_bytes, traits, overlaps); error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  void* arguments[] = {&params};
  return cudaLaunchKernelExC(&config, function, arguments);
}

#else  // the emulator

template <auto kernel, typename Params>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Params params) {
  emulator::run(grid, block, shared_bytes, [params] { kernel(params); });
  return cudaSuccess;
}

#endif

}  // namespace ssd::cuda
