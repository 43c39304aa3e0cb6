// All inline PTX of csrc/cuda, as device functions with plain names. Without nvcc the same functions come from the emulator
// (tests/emulator), which runs the kernels' sources on the CPU. Only this file and launch.h differ between the two.
//
// Two rules let one source serve both. Shared memory is dynamic and comes only from shared_memory<T>(). All 32 lanes call a
// warp-wide function together, with the full mask: those of this file and CUDA's own (__shfl_xor_sync, __ballot_sync, ..).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if !defined(__CUDACC__)
#include "emulator.h"
#endif

namespace ssd::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

#if defined(__CUDACC__)

// The shared memory of the block, 16-byte aligned. launch()'s shared_bytes is its size.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Brings the word at `global`, and its cache line, into the L1 cache.
__device__ __forceinline__ void read_ahead(const void* global) {
  asm volatile("{ .reg .b32 word; ld.global.b32 word, [%0]; }" ::"l"(global) : "memory");
}

// Starts a copy of 16 bytes to shared memory. If `valid` is false it writes 16 zero bytes and does not read `global`. Both
// addresses are 16-byte aligned. This thread sees the result after the cp_async_wait of the copy's group.
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// The same through the L1 cache, for data that other warps of the multiprocessor read too.
__device__ __forceinline__ void cp_async_cached(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group: the copies that this thread has started since the last call. A group may be empty.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `pending` newest groups of this thread are in flight.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Loads four 8 x 8 matrices of two-byte elements from shared memory. Lane 8 i + r passes the address of row r of matrix i. Each
// lane gets two elements of each matrix: those at row lane / 4, columns 2 (lane % 4) and 2 (lane % 4) + 1.
__device__ __forceinline__ void ldmatrix(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, with each matrix transposed.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}

// d[16 x 8] += a[16 x 16] b[16 x 8]: a and b are bfloat16, d is float. A word holds two elements. With g = lane / 4 and t =
// lane % 4, the elements of a lane begin at: a: {(g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)}; b, as (k, n): {(2t, g),
// (2t + 8, g)}; and d has (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// a - b for each of the two bf16s of a word.
__device__ __forceinline__ uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(b), "r"(0xbf80bf80u), "r"(a));  // b * -1 + a
  return difference;
}

// 2^x within 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// On Hopper a kernel may start before the one ahead of it in the stream has ended. Until this function returns, the kernel may
// read only weights, because no kernel writes those. After it, all writes of earlier kernels are visible.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start on multiprocessors that this one leaves free.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else

using emulator::cp_async;
using emulator::cp_async_cached;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::exp2_approx;
using emulator::ldmatrix;
using emulator::ldmatrix_transposed;
using emulator::let_next_kernel_start;
using emulator::mma;
using emulator::read_ahead;
using emulator::shared_memory;
using emulator::subtract_pairs;
using emulator::wait_for_previous_kernel;

#endif

}  // namespace ssd::cuda
