// An IF node of a CUDA graph, added to the graph that a stream is being captured into.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/green_context.h"

namespace ssd {

// From begin to end what is enqueued on `body` becomes the node's body: it runs in a launch of the graph if any of the flags is set
// by then. Needs CUDA 12.4, toolkit and driver. Throws std::runtime_error with what CUDA says.
class Conditional {
 public:
  // stream: being captured. flags: [count] on the device. body: a stream with nothing else on it. part: of which both streams are, or
  // null.
  Conditional(cudaStream_t stream, const uint8_t* flags, int32_t count, cudaStream_t body, const GreenContext* part);

  void end();

 private:
  cudaStream_t body_;
};

// Whether the driver knows conditional nodes.
bool has_conditional_nodes();

}  // namespace ssd
