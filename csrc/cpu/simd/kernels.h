// The CPU's inner loops on raw pointers. Every file of this folder is compiled once per instruction set (portable, AVX2,
// AVX512-BF16) into a table of these functions; kernels() picks one table by CPUID when it is first asked.
//
// Each function computes its rows by itself and in an order that depends on the row alone, which is what makes every op above
// row invariant: threads and row tiles only choose who computes a row and when.
#pragma once

#include <cstdint>

#include "../../common/paging.h"

namespace ssd {

struct bf16 {
  uint16_t bits;
};

constexpr int kBlock = 16;  // outputs in one block of a packed weight, and floats in a vector

// Rows of x side by side, as many as a tile's sums find registers for.
constexpr int kRowTile = 8;

// A packed block of int8 weights begins with its outputs' scales, sixteen floats.
constexpr int kScaleBytes = kBlock * sizeof(float);

// One block of outputs for all rows, from the sums to the rounded result: one step of `linear`. T: the run dtype; W: the weights'.
template <typename T, typename W = T>
struct LinearTile {
  const T* x;       // packed by tiles of kRowTile rows, the last of fewer: [in / 2, rows of the tile, 2] (bf16) or [in, rows]
  const W* weight;  // the packed block, [in / 2, 16, 2] (bf16; int8 behind its scales) or [in, 16] (float)
  const W* gate;    // the gate's packed block, for silu(gate) * up; else null
  const T* bias;    // [16], or null
  const T* gate_bias;          // [16], or null
  const T* residual;           // [rows, 16], rows y_stride apart, or null
  void* y;                     // [rows, 16], rows y_stride apart: T, or float with float32_out
  int64_t rows, in, y_stride;  // in is even
  int outputs;                 // of the block's sixteen, those that exist
  bool float32_out;
};

constexpr int kMaxGroup = 32;          // query heads that share a K/V head
constexpr int kMaxHeadDim = 256;       // a multiple of kBlock
constexpr int kMaxAttentionRows = 16;  // rows that share one walk over a sequence's keys

// Floats of scratch an AttentionTile needs: queries, running outputs, and a tile's scores.
constexpr int64_t attention_scratch(int64_t rows, int64_t group, int64_t head_dim) {
  return group * (2 * rows * head_dim + kCoarseTile);
}

template <typename T>
struct AttentionTile {
  const T* q;                   // [rows, query_heads, head_dim], rows q_stride apart
  const T* k_cache;             // [pages * page_size, kv_heads, head_dim]
  const T* v_cache;             // like k_cache
  const int32_t* pages;         // [P], the sequence's page table row
  const int32_t* prefix_len;    // [rows]
  const int32_t* suffix_slots;  // [rows, suffix_width], or null
  const int32_t* suffix_len;    // [rows], or null
  T* out;                       // [rows, query_heads, head_dim]
  float* scratch;               // [attention_scratch(rows, query_heads / kv_heads, head_dim)]
  int64_t rows;                 // all of one sequence
  int64_t q_stride;
  int32_t query_heads, kv_heads, head_dim, page_size, suffix_width;
  int32_t kv_head;  // the one this tile works on
  float scale;
};

struct Entry {
  float value;
  int32_t id;
};

struct Kernels {
  const char* name;
  void (*linear_bf16)(const LinearTile<bf16>&);
  void (*linear_float)(const LinearTile<float>&);
  void (*linear_int8)(const LinearTile<bf16, int8_t>&);
  void (*attention_bf16)(const AttentionTile<bf16>&);
  void (*attention_float)(const AttentionTile<float>&);
  // y[d] = x[d] / rms(x) * weight[d]
  void (*rms_norm_bf16)(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y);
  void (*rms_norm_float)(const float* x, const float* weight, float eps, int64_t d, float* y);
  // The n largest entries in the order (value descending, id ascending), `excluded` (-1: none) and
  // NaN left out. Returns how many there are.
  int (*largest)(const float* logits, int64_t size, int n, int32_t excluded, Entry* out);
  // out[i] = the probability of entry first + i, logits[i], under `stats` (common/distribution.h).
  void (*probabilities)(const float* logits, const float* stats, int32_t first, int64_t n, float* out);
  // times[i] = when entry i rings in an exponential race; +inf where its weight is 0 (or NaN).
  void (*race_times)(const float* weights, int64_t n, int64_t seed, int32_t position, uint32_t purpose, float* times);
  double (*sum)(const float* values, int64_t n);
};

const Kernels& kernels();

}  // namespace ssd
