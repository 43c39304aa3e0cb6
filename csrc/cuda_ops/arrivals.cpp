// Where the blocks of a launch count their arrivals (csrc/cuda/kernels.h): zeros that every kernel leaves zero, so that no launch
// has to clear any.
//
// A stream has a pool, made at its first use. A captured graph does not use its stream's: two graphs captured on one stream may
// be replayed on two at once. Each capture gets a pool of its own instead, from the graph's own memory, which is filled with
// zeros by one node at the start of every replay.

#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>
#include <tuple>

#include "call.h"

namespace ssd {
namespace {

constexpr int64_t kCounters = 65536;  // in a pool: prefill chunks of 8,192 rows with 8 K/V heads

struct Pool {
  unsigned long long capture = 0;
  Tensor counters;
};

// 0: none is under way.
unsigned long long capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &id));
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

}  // namespace

int32_t* arrival_counters(int64_t count, const Tensor& like, c10::cuda::CUDAStream stream) {
  TORCH_CHECK(count <= kCounters, "one call on CUDA puts together at most ", kCounters,
              " results (rows times K/V heads for "
              "paged_attention, else rows), not ",
              count, "; pass fewer rows at a time");
  // Never destroyed: at the end of the process there may be no CUDA left to free memory with.
  static auto& mutex = *new std::mutex;
  static auto& pools = *new std::map<std::tuple<c10::DeviceIndex, c10::StreamId, bool>, Pool>;
  const unsigned long long capture = capture_of(stream);
  const std::lock_guard lock(mutex);
  Pool& pool = pools[{like.device().index(), stream.id(), capture != 0}];
  // A finished capture's pool is its graph's memory: letting go of the tensor leaves the graph what it has.
  if (!pool.counters.defined() || pool.capture != capture)
    pool = {capture, at::zeros({kCounters}, like.options().dtype(at::kInt))};
  return pool.counters.mutable_data_ptr<int32_t>();
}

}  // namespace ssd
