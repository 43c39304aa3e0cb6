// The one way a kernel is started: a kernel takes one parameter struct by value, and its launcher calls launch() with it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace ssd::cuda {

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // a block may have more only if its kernel is allowed to

// An empty grid is nothing to do, not an error. Returns what the CUDA runtime says; errors of the kernel itself come later.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Params params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {&params};
  return cudaLaunchKernel(function, grid, block, arguments, shared_bytes, stream);
}

}  // namespace ssd::cuda
