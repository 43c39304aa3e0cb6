// Looks the driver's functions up at run time. An extension that links to them could not be loaded on a machine without a
// driver.
#include "runtime/green_context.h"

#include <stdexcept>
#include <string>

namespace ssd {
namespace {

constexpr unsigned int kVersion = CUDART_VERSION;  // version of the declarations in cuda.h

template <typename Function>
Function* driver(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || found == nullptr) {
    throw std::runtime_error(std::string("this driver has no ") + name + ": parts of a GPU need CUDA 12.5");
  }
  return reinterpret_cast<Function*>(found);
}

void check(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  driver<decltype(cuGetErrorString)>("cuGetErrorString")(result, &text);
  throw std::runtime_error(std::string(what) + ": " + (text != nullptr ? text : "an error without a name"));
}

// Calls a function of the driver and checks its result.
#define SSD_DRIVER(function, ...) check(driver<decltype(function)>(#function)(__VA_ARGS__), #function)

}  // namespace

GreenContext::GreenContext(int32_t device, int32_t multiprocessors) {
  CUdevice handle = 0;
  SSD_DRIVER(cuDeviceGet, &handle, device);
  CUdevResource all{}, part{};
  SSD_DRIVER(cuDeviceGetDevResource, handle, &all, CU_DEV_RESOURCE_TYPE_SM);
  unsigned int groups = 1;
  SSD_DRIVER(cuDevSmResourceSplitByCount, &part, &groups, &all, nullptr, 0, static_cast<unsigned int>(multiprocessors));
  if (groups != 1) {
    throw std::runtime_error(std::to_string(multiprocessors) + " multiprocessors cannot be set apart of " +
                             std::to_string(all.sm.smCount));
  }
  CUdevResourceDesc description = nullptr;
  SSD_DRIVER(cuDevResourceGenerateDesc, &description, &part, 1);
  SSD_DRIVER(cuGreenCtxCreate, &context_, description, handle, CU_GREEN_CTX_DEFAULT_STREAM);
  multiprocessors_ = static_cast<int32_t>(part.sm.smCount);
}

cudaStream_t GreenContext::stream(int32_t priority) {
  CUstream stream = nullptr;
  SSD_DRIVER(cuGreenCtxStreamCreate, &stream, context_, CU_STREAM_NON_BLOCKING, priority);
  return stream;
}

GreenContext::Current::Current(const GreenContext* context) : pushed_(context != nullptr) {
  if (!pushed_) return;
  CUcontext handle = nullptr;
  SSD_DRIVER(cuCtxFromGreenCtx, &handle, context->context_);
  SSD_DRIVER(cuCtxPushCurrent, handle);
}

GreenContext::Current::~Current() {
  if (!pushed_) return;
  CUcontext popped = nullptr;
  driver<decltype(cuCtxPopCurrent)>("cuCtxPopCurrent")(&popped);
}

#undef SSD_DRIVER

}  // namespace ssd
