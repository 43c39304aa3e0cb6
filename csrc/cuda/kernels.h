// What csrc/cuda offers: a parameter struct and a launcher for each kernel, on raw pointers and a stream. No torch header on
// this side of the wall; csrc/cuda_ops.cpp checks tensors and fills these in. All arrays are contiguous, on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ssd::cuda {

struct MoveKvParams {
  void* kv;  // [planes, places, row_bytes], planes = layers * 2 (K and V), places = pages * page_size; 16-byte aligned
  const int32_t* src;  // [moves] KV slots; negative skips the move
  const int32_t* dst;  // [moves]
  int64_t planes;
  int64_t places;
  int64_t row_bytes;  // kv_heads * head_dim * element size, a multiple of 16
  int32_t moves;
};
cudaError_t move_kv(const MoveKvParams& params, cudaStream_t stream);

}  // namespace ssd::cuda
