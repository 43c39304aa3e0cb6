// Small kernels with mistakes that the emulator must find. Each is right, or has one planted mistake. test_emulator.py runs
// this program.
//
// mistakes NAME ORDER [planted]: prints "right", "wrong" (for a wrong result), or the emulator's error.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"
#include "reduce.cuh"

namespace ssd::cuda {
namespace {

constexpr int kThreads = 64, kBlocks = 3;

struct Params {
  const float* in;  // [blocks, threads]
  float* out;       // [blocks, threads]
  int* arrivals;    // [1]
  bool planted;
};

int thread() { return static_cast<int>(threadIdx.x); }
int at() { return static_cast<int>(blockIdx.x) * kThreads + thread(); }

// Each kernel writes out[i]; expected() computes the right value.

void neighbour(Params p) {  // planted: no barrier between a write to shared memory and another thread's read
  float* shared = shared_memory<float>();
  shared[thread()] = p.in[at()];
  if (!p.planted) __syncthreads();
  p.out[at()] = shared[(thread() + 1) % kThreads];
}

void reuse(Params p) {  // planted: no barrier between a read of shared memory and the write that replaces it
  float* shared = shared_memory<float>();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    shared[thread()] = p.in[at()] * static_cast<float>(round);
    __syncthreads();
    sum += shared[(thread() + 1) % kThreads];
    if (!p.planted) __syncthreads();
  }
  p.out[at()] = sum;
}

void lanes(Params p) {  // planted: no __syncwarp where lanes of one warp exchange through shared memory
  float* shared = shared_memory<float>();
  shared[thread()] = p.in[at()];
  if (!p.planted) __syncwarp();
  p.out[at()] = shared[thread() ^ 1];
}

void barrier_left_out(Params p) {  // planted: one thread does not reach the barrier
  if (!p.planted || thread() != 5) __syncthreads();
  p.out[at()] = p.in[at()];
}

void lane_left_out(Params p) {  // planted: one lane has ended before its warp computes a sum
  if (p.planted && thread() == 5) return;
  p.out[at()] = p.in[at()] + 0.0f * warp_sum(1.0f);
}

void two_functions(Params p) {  // planted: lanes of one warp call two functions
  const float value = p.in[at()];
  const float other =
      p.planted && thread() % 2 == 0 ? __shfl_sync(kFullMask, value, thread() % kWarp) : __shfl_xor_sync(kFullMask, value, 0);
  p.out[at()] = other;
}

void part_of_a_warp(Params p) {  // planted: a mask without all lanes
  p.out[at()] = __shfl_sync(p.planted ? 0xffffu : kFullMask, p.in[at()], thread() % kWarp);
}

void copy_in(Params p) {  // planted: no wait for the copy
  float* shared = shared_memory<float>();
  if (thread() % 4 == 0) cp_async(shared + thread(), p.in + at());
  cp_async_commit();
  if (!p.planted) cp_async_wait<0>();
  __syncthreads();
  p.out[at()] = shared[thread()];
  cp_async_wait<0>();
}

void one_group_too_few(Params p) {  // planted: no wait for the group that is read
  float* shared = shared_memory<float>();
  for (int half = 0; half < 2; ++half) {
    if (thread() % 4 == 0 && thread() / (kThreads / 2) == half) cp_async(shared + thread(), p.in + at());
    cp_async_commit();
  }
  if (p.planted) {
    cp_async_wait<1>();
  } else {
    cp_async_wait<0>();
  }
  __syncthreads();
  p.out[at()] = shared[thread()];
  cp_async_wait<0>();
}

void never_waited(Params p) {  // planted: a thread ends with a copy in flight
  float* shared = shared_memory<float>();
  if (thread() % 4 == 0) cp_async(shared + thread(), p.in + at());
  if (!p.planted) cp_async_wait<0>();
  cp_async_commit();
  if (!p.planted) cp_async_wait<0>();
  p.out[at()] = p.in[at()];
}

void misaligned(Params p) {  // planted: a copy from an address that is not a multiple of 16
  float* shared = shared_memory<float>();
  if (thread() % 4 == 0 && thread() < kThreads - 4) cp_async(shared + thread(), p.in + at() + (p.planted ? 1 : 0));
  cp_async_commit();
  cp_async_wait<0>();
  p.out[at()] = p.in[at()];
}

void unset_shared(Params p) {  // planted: a read of shared memory that nobody has written
  float* shared = shared_memory<float>();
  if (!p.planted || thread() != 7) shared[thread()] = 0.0f;
  p.out[at()] = p.in[at()] + shared[thread()];
}

void unset_register(Params p) {  // planted: a read of a variable that nobody has set
  volatile float zero;
  if (!p.planted || thread() != 7) zero = 0.0f;
  p.out[at()] = p.in[at()] + zero;
}

void beyond_shared(Params p) {  // planted: a write after the end of the block's shared memory
  float* shared = shared_memory<float>();
  shared[p.planted ? thread() + 1 : thread()] = 1.0f;
  p.out[at()] = p.in[at()];
}

void last_arriver(Params p) {  // planted: the block with the largest index, not the last to arrive, reads another's result
  p.out[at()] = p.in[at()];
  float* last = shared_memory<float>();
  __syncthreads();
  __threadfence();
  if (thread() == 0) {
    const int before = atomicAdd(p.arrivals, 1);
    *last = (p.planted ? blockIdx.x : static_cast<unsigned>(before)) == kBlocks - 1 ? 1.0f : 0.0f;
  }
  __syncthreads();
  const int of_last = (kBlocks - 1) * kThreads + thread();
  if (*last != 0.0f) p.out[of_last] = p.in[of_last] + p.out[thread()];
}

struct Case {
  const char* name;
  void (*launch)(Params);
};

template <auto kernel>
void start(Params p) {
  if (launch<kernel>(dim3(kBlocks), dim3(kThreads), kThreads * sizeof(float), nullptr, p) != cudaSuccess)
    throw std::logic_error("launch");
}

#define CASE(kernel) {#kernel, start<kernel>}
const Case cases[] = {CASE(neighbour),         CASE(reuse),         CASE(lanes),          CASE(barrier_left_out),
                      CASE(lane_left_out),     CASE(two_functions), CASE(part_of_a_warp), CASE(copy_in),
                      CASE(one_group_too_few), CASE(never_waited),  CASE(misaligned),     CASE(unset_shared),
                      CASE(unset_register),    CASE(beyond_shared), CASE(last_arriver)};

float expected(const std::string& name, const std::vector<float>& in, int i) {
  const int block = i / kThreads * kThreads, t = i % kThreads;
  if (name == "neighbour" || name == "reuse") return in[static_cast<size_t>(block + (t + 1) % kThreads)];
  if (name == "lanes") return in[static_cast<size_t>(block + (t ^ 1))];
  const bool of_last = name == "last_arriver" && block == (kBlocks - 1) * kThreads;
  return in[static_cast<size_t>(i)] + (of_last ? in[static_cast<size_t>(t)] : 0.0f);
}

}  // namespace
}  // namespace ssd::cuda

int main(int count, char** arguments) {
  using namespace ssd;
  const std::string name = count > 1 ? arguments[1] : "", order = count > 2 ? arguments[2] : "";
  if (name == "list") {
    for (const auto& each : cuda::cases) std::printf("%s\n", each.name);
    return 0;
  }
  emulator::configure(order == "forward"    ? emulator::Order::kForward
                      : order == "reversed" ? emulator::Order::kReversed
                                            : emulator::Order::kShuffled,
                      1);
  std::vector<float> in(cuda::kBlocks * cuda::kThreads + 4), out(in.size(), -1.0f);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i + 1);
  int arrivals = 0;
  for (const auto& each : cuda::cases) {
    if (name != each.name) continue;
    try {
      each.launch({in.data(), out.data(), &arrivals, count > 3});
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return 0;
    }
    bool right = true;
    for (int i = 0; i < cuda::kBlocks * cuda::kThreads; ++i)
      right = right && out[static_cast<size_t>(i)] == cuda::expected(name, in, i);
    std::printf(right ? "right\n" : "wrong\n");
    return 0;
  }
  return 2;
}
