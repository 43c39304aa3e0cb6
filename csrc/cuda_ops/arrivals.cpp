// The counters in which the blocks of a launch count their arrivals (csrc/cuda/kernels.h). Every kernel leaves them zero, so
// that no launch has to clear them.
//
// A stream has one pool of counters, made at its first use. A captured graph does not use the pool of its stream, because two
// graphs captured on one stream may be replayed on two streams at the same time. Each capture gets a pool of its own in the
// memory of the graph, and one node fills it with zeros at the start of every replay.

#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>
#include <tuple>

#include "call.h"

namespace ssd {
namespace {

constexpr int64_t kCounters = 65536;  // of a pool; enough for a prefill chunk of 8,192 rows with 8 K/V heads

struct Pool {
  unsigned long long capture = 0;
  Tensor counters;
};

// The id of the capture in progress on the stream; 0 without one.
unsigned long long capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &id));
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

}  // namespace

bool is_capturing(cudaStream_t stream) { return capture_of(stream) != 0; }

int32_t* arrival_counters(int64_t count, const Tensor& like, c10::cuda::CUDAStream stream) {
  TORCH_CHECK(count <= kCounters, "one call on CUDA puts together at most ", kCounters,
              " results (rows times K/V heads for "
              "paged_attention, else rows), not ",
              count, "; pass fewer rows at a time");
  // Never destroyed: at the end of the process, CUDA may be gone before these are freed.
  static auto& mutex = *new std::mutex;
  static auto& pools = *new std::map<std::tuple<c10::DeviceIndex, c10::StreamId, bool>, Pool>;
  const unsigned long long capture = capture_of(stream);
  const std::lock_guard lock(mutex);
  Pool& pool = pools[{like.device().index(), stream.id(), capture != 0}];
  // The pool of a finished capture belongs to the memory of its graph, which keeps it when the tensor is freed here.
  if (!pool.counters.defined() || pool.capture != capture)
    pool = {capture, at::zeros({kCounters}, like.options().dtype(at::kInt))};
  return pool.counters.mutable_data_ptr<int32_t>();
}

}  // namespace ssd
