// Stream capture has no call for conditional nodes. So the node is added by hand to the graph that is being captured: after
// everything that the stream has captured so far, and before everything that it captures later.
#include "runtime/conditional.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace ssd {
namespace {

constexpr int kFirstDriver = 12040;

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

struct Capture {
  cudaGraph_t graph = nullptr;
  std::vector<cudaGraphNode_t> dependencies;  // nodes that the stream's next node depends on
  std::vector<cudaGraphEdgeData> edges;
};

Capture capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* nodes = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &nodes, &edges, &count), "cudaStreamGetCaptureInfo");
#else
  check(cudaStreamGetCaptureInfo_v3(stream, &status, nullptr, &graph, &nodes, &edges, &count), "cudaStreamGetCaptureInfo");
#endif
  if (status != cudaStreamCaptureStatusActive) throw std::runtime_error("a condition was asked for outside of a capture");
  Capture found{graph, {nodes, nodes + count}, {}};
  if (edges != nullptr) found.edges.assign(edges, edges + count);
  return found;
}

}  // namespace

Conditional::Conditional(cudaStream_t stream, const uint8_t* flags, int32_t count, cudaStream_t body, const GreenContext* part)
    : body_(body) {
  const GreenContext::Current current(part);
  cudaGraphConditionalHandle handle{};
  check(cudaGraphConditionalHandleCreate(&handle, capture_of(stream).graph, 0, cudaGraphCondAssignDefault),
        "cudaGraphConditionalHandleCreate");
  check(cuda::condition({flags, handle, count}, stream), "condition");

  const Capture capture = capture_of(stream);  // again, because the kernel that decides is part of it now
  cudaGraphNodeParams params{};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle;
  params.conditional.type = cudaGraphCondTypeIf;
  params.conditional.size = 1;
  const cudaGraphEdgeData* edges = capture.edges.empty() ? nullptr : capture.edges.data();
  cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
  check(cudaGraphAddNode(&node, capture.graph, capture.dependencies.data(), edges, capture.dependencies.size(), &params),
        "cudaGraphAddNode");
  check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies),
        "cudaStreamUpdateCaptureDependencies");
#else
  check(cudaGraphAddNode_v2(&node, capture.graph, capture.dependencies.data(), edges, capture.dependencies.size(), &params),
        "cudaGraphAddNode");
  check(cudaStreamUpdateCaptureDependencies_v2(stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies),
        "cudaStreamUpdateCaptureDependencies");
#endif
  cudaGraph_t inside = params.conditional.phGraph_out[0];
  check(cudaStreamBeginCaptureToGraph(body, inside, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCaptureToGraph");
}

void Conditional::end() {
  cudaGraph_t inside = nullptr;
  check(cudaStreamEndCapture(body_, &inside), "cudaStreamEndCapture");
}

bool has_conditional_nodes() {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= kFirstDriver;
}

}  // namespace ssd
