// A part of a GPU: work on its streams runs on a fixed number of multiprocessors and on no others.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace ssd {

// The driver's "green context". Needs a driver of CUDA 12.5. Throws std::runtime_error with CUDA's message.
//
// Neither a context nor a stream ever ends, like the streams of torch's own pool: torch's allocators record events on the
// streams that used a tensor when the tensor is freed, and that may be long after the engine has ended.
class GreenContext {
 public:
  // Takes at least `multiprocessors` of a device; the driver rounds up to a number that the chip can separate.
  GreenContext(int32_t device, int32_t multiprocessors);
  GreenContext(const GreenContext&) = delete;
  GreenContext& operator=(const GreenContext&) = delete;

  cudaStream_t stream(int32_t priority);
  int32_t multiprocessors() const { return multiprocessors_; }

  // While one is alive, nodes that this thread adds to a graph belong to this context. The body of an IF node of this context
  // may hold only such nodes.
  class Current {
   public:
    explicit Current(const GreenContext* context);  // null changes nothing
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    bool pushed_;
  };

 private:
  CUgreenCtx context_ = nullptr;
  int32_t multiprocessors_ = 0;
};

}  // namespace ssd
