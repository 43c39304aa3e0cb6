// A part of a GPU: what is enqueued on its streams runs on so many of the multiprocessors and no others.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace ssd {

// The driver's "green context". Needs a driver of CUDA 12.5. Throws std::runtime_error with what CUDA says.
class GreenContext {
 public:
  // At least `multiprocessors` of a device's; the driver rounds up to what its chip can set apart.
  GreenContext(int32_t device, int32_t multiprocessors);
  ~GreenContext();
  GreenContext(const GreenContext&) = delete;
  GreenContext& operator=(const GreenContext&) = delete;

  cudaStream_t stream(int32_t priority);  // ends with the context
  int32_t multiprocessors() const { return multiprocessors_; }

  // While one is alive, what this thread adds to a graph is this context's: only such nodes may lie in the body of one of its IF nodes.
  class Current {
   public:
    explicit Current(const GreenContext* context);  // null: nothing changes
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    bool pushed_;
  };

 private:
  CUgreenCtx context_ = nullptr;
  int32_t multiprocessors_ = 0;
  std::vector<CUstream> streams_;
};

}  // namespace ssd
