// An IF node in the CUDA graph that a stream is being captured into.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/green_context.h"

namespace ssd {

// Work that is enqueued on `body` between the constructor and end() becomes the body of the node. It runs in a replay of the
// graph if any flag is set when the graph reaches the node. Needs toolkit and driver of CUDA 12.4. Throws std::runtime_error
// with CUDA's message.
class Conditional {
 public:
  // stream: a stream that is being captured. flags: [count] on the device. body: a stream without other work. part: the green
  // context of both streams, or null.
  Conditional(cudaStream_t stream, const uint8_t* flags, int32_t count, cudaStream_t body, const GreenContext* part);

  void end();

 private:
  cudaStream_t body_;
};

// Whether the driver has conditional nodes.
bool has_conditional_nodes();

}  // namespace ssd
