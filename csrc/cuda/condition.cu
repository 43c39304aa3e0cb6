// Decides on the device, when the graph reaches a conditional node, whether its body runs. Floor: a launch.
#include "kernels.h"
#include "launch.h"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 32;

__global__ void __launch_bounds__(kThreads) condition_kernel(ConditionParams p) {
  wait_for_previous_kernel();
  bool any = false;
  for (int i = static_cast<int>(threadIdx.x); i < p.count; i += kThreads) any |= p.flags[i] != 0;
  any = __any_sync(0xffffffffu, any);
  if (threadIdx.x == 0) cudaGraphSetConditional(p.handle, any ? 1 : 0);
}

}  // namespace

cudaError_t condition(const ConditionParams& params, cudaStream_t stream) {
  return launch<condition_kernel>(dim3(1), dim3(kThreads), 0, stream, params);
}

}  // namespace ssd::cuda
