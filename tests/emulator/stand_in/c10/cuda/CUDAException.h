// Replaces torch's header, which is incomplete in a CPU build of torch.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(expression)                                                                          \
  do {                                                                                                      \
    const cudaError_t error_of_call = (expression);                                                         \
    TORCH_CHECK(error_of_call == cudaSuccess, #expression, " failed with CUDA error ", int(error_of_call)); \
  } while (0)
