// Runs the kernels of csrc/cuda on the CPU, one thread of a block after another. It is a test tool that finds mistakes; it is
// not fast.
//
// The kernels' own sources are compiled as C++. csrc/cuda/ptx.h includes this file in place of its PTX, and launch() calls
// run(). Blocks run one at a time. The threads of a block are fibers. Each runs until it waits for others (a barrier, a
// warp-wide function). Between two such points, threads run in a chosen order: forward, reversed or shuffled.
//
// Whatever a GPU leaves undefined does harm here. Shared memory starts as NaN. The target of a cp.async is NaN until the thread
// waits for the copy. A barrier or warp-wide function that not every thread reaches is an error, and so is an access outside
// the memory of the launch (torch_side.cpp has the guard pages). With -ftrivial-auto-var-init=pattern, variables that nobody
// has set hold nonsense too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <type_traits>

namespace ssd::emulator {

enum class Order { kForward, kReversed, kShuffled };  // of the threads of a block, and of the blocks of a grid

void configure(Order order, uint64_t seed);

// Runs one launch. Throws std::runtime_error, with block and thread, if a kernel does what it must not.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

// The largest block of each kernel so far. The key is the mangled name of the function inside launch(), which contains the
// kernel's name.
struct Block {
  unsigned threads;
  size_t shared_bytes;
};
const std::map<std::string, Block>& launched();

// Functions that device code calls --------------------------------------------------------------------------------------------------

void* shared_bytes();
template <typename T>
T* shared_memory() {
  return static_cast<T*>(shared_bytes());
}

void barrier();

// The input and the output of one lane at a warp-wide function.
struct Lane {
  alignas(16) unsigned char in[48];
  alignas(16) unsigned char out[16];
};
using Exchange = void (*)(Lane (&lanes)[32]);

// Blocks until all 32 lanes have called the same `function`. Then `exchange` computes the result of every lane.
void meet(const char* function, unsigned mask, const void* in, size_t in_bytes, void* out, size_t out_bytes, Exchange exchange);

template <typename T>
T input(const Lane& lane) {
  T value;
  std::memcpy(&value, lane.in, sizeof(T));
  return value;
}

template <typename T>
void give(Lane& lane, const T& value) {
  static_assert(sizeof(T) <= sizeof(lane.out));
  std::memcpy(lane.out, &value, sizeof(T));
}

template <typename T>
struct FromLane {
  T value;
  int lane;
};

// Every lane gets the value of the lane it names.
template <typename T>
T shuffle(const char* function, unsigned mask, T value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  const FromLane<T> in{value, from};
  T out;
  meet(function, mask, &in, sizeof(in), &out, sizeof(out), [](Lane(&lanes)[32]) {
    for (Lane& lane : lanes) give(lane, input<FromLane<T>>(lanes[input<FromLane<T>>(lane).lane & 31]).value);
  });
  return out;
}

unsigned ballot(const char* function, unsigned mask, bool predicate);
int lane_index();

// csrc/cuda/ptx.h documents these.
void cp_async(void* shared, const void* global, bool valid = true);
inline void cp_async_cached(void* shared, const void* global, bool valid = true) { cp_async(shared, global, valid); }
void cp_async_commit();
void cp_async_wait_for(int pending);
template <int pending>
void cp_async_wait() {
  cp_async_wait_for(pending);
}

void load_matrices(const char* function, uint32_t (&matrix)[4], const void* row, bool transposed);
inline void ldmatrix(uint32_t (&matrix)[4], const void* row) { load_matrices("ldmatrix", matrix, row, false); }
inline void ldmatrix_transposed(uint32_t (&matrix)[4], const void* row) {
  load_matrices("ldmatrix_transposed", matrix, row, true);
}

struct MmaOperands {
  uint32_t a[4], b[2];
  float d[4];
};
void multiply(Lane (&lanes)[32]);

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  meet("mma", ~0u, &in, sizeof(in), d, sizeof(d), multiply);
}

inline uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  const auto low = [](uint32_t pair) { return std::bit_cast<float>(pair << 16); };
  const auto high = [](uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); };
  const auto bits = [](float x) { return uint32_t{std::bit_cast<uint16_t>(__float2bfloat16(x))}; };
  return bits(low(a) - low(b)) | bits(high(a) - high(b)) << 16;
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline void read_ahead(const void* /*global*/) {}
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

}  // namespace ssd::emulator

// Names that CUDA defines -----------------------------------------------------------------------------------------------------------

// Of the running thread and block.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#define __launch_bounds__(...)

inline void __syncthreads() { ssd::emulator::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) {
  ssd::emulator::meet("__syncwarp", mask, nullptr, 0, nullptr, 0, [](ssd::emulator::Lane(&)[32]) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return ssd::emulator::shuffle("__shfl_sync", mask, value, lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return ssd::emulator::shuffle("__shfl_xor_sync", mask, value, ssd::emulator::lane_index() ^ bits);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int lane = ssd::emulator::lane_index();
  return ssd::emulator::shuffle("__shfl_up_sync", mask, value, lane < distance ? lane : lane - distance);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance) {
  const int lane = ssd::emulator::lane_index();
  return ssd::emulator::shuffle("__shfl_down_sync", mask, value, lane + distance > 31 ? lane : lane + distance);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return ssd::emulator::ballot("__ballot_sync", mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) { return ssd::emulator::ballot("__any_sync", mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return ssd::emulator::ballot("__all_sync", mask, predicate != 0) == ~0u; }

template <typename T>
T atomicAdd(T* place, std::type_identity_t<T> value) {
  const T before = *place;
  *place = before + value;
  return before;
}
template <typename T>
T atomicMax(T* place, std::type_identity_t<T> value) {
  const T before = *place;
  *place = before < value ? value : before;
  return before;
}
template <typename T>
T atomicMin(T* place, std::type_identity_t<T> value) {
  const T before = *place;
  *place = value < before ? value : before;
  return before;
}
template <typename T>
T atomicExch(T* place, std::type_identity_t<T> value) {
  const T before = *place;
  *place = value;
  return before;
}
template <typename T>
T atomicOr(T* place, std::type_identity_t<T> value) {
  const T before = *place;
  *place = before | value;
  return before;
}

template <typename T>
T __ldg(const T* place) {
  return *place;
}
template <typename T>
T __ldcg(const T* place) {
  return *place;
}

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::isnan;
