// In place of torch's, which a CPU build of torch does not have whole.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(expression)                                                                          \
  do {                                                                                                      \
    const cudaError_t error_of_call = (expression);                                                         \
    TORCH_CHECK(error_of_call == cudaSuccess, #expression, " failed with CUDA error ", int(error_of_call)); \
  } while (0)
