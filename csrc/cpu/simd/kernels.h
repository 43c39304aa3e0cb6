// The CPU's inner loops, on raw pointers. Each file of this folder is compiled once per instruction set (portable, AVX2,
// AVX512-BF16) into a table of these functions. kernels() chooses a table by CPUID at its first call.
//
// Each function computes a row in an order that depends on that row alone. Threads and row tiles choose only who computes a row
// and when. Therefore every op that uses these functions is row invariant.
#pragma once

#include <cstdint>

#include "../../common/paging.h"

namespace ssd {

struct bf16 {
  uint16_t bits;
};

constexpr int kBlock = 16;  // outputs in one block of a packed weight, and floats in a vector

// Rows of x in a tile: as many as there are registers for their sums.
constexpr int kRowTile = 8;

// A packed block of int8 weights begins with the scales of its outputs: sixteen floats.
constexpr int kScaleBytes = kBlock * sizeof(float);

// One step of `linear`: one block of outputs for all rows, up to the rounded result. T: element type of x; W: element type of
// the weight.
template <typename T, typename W = T>
struct LinearTile {
  // x: tiles of kRowTile rows, the last with fewer, each [in / 2, rows of the tile, 2] (bf16) or [in, rows of the tile].
  const T* x;
  const W* weight;             // the packed block: [in / 2, 16, 2] (bf16, and int8 after its scales) or [in, 16] (float)
  const W* gate;               // the gate's packed block for silu(gate) * up, else null
  const T* bias;               // [16], or null
  const T* gate_bias;          // [16], or null
  const T* residual;           // [rows, 16], rows y_stride apart, or null
  void* y;                     // [rows, 16], rows y_stride apart: T, or float with float32_out
  int64_t rows, in, y_stride;  // in is even
  int outputs;                 // how many of the block's sixteen exist
  bool float32_out;
};

constexpr int kMaxGroup = 32;          // most query heads that share a K/V head
constexpr int kMaxHeadDim = 256;       // a multiple of kBlock
constexpr int kMaxAttentionRows = 16;  // most rows that share one loop over a sequence's keys

// Floats of scratch memory that an AttentionTile needs: queries, running outputs, and the scores of a tile.
constexpr int64_t attention_scratch(int64_t rows, int64_t group, int64_t head_dim) {
  return group * (2 * rows * head_dim + kCoarseTile);
}

template <typename T>
struct AttentionTile {
  const T* q;                   // [rows, query_heads, head_dim], rows q_stride apart
  const T* k_cache;             // [pages * page_size, kv_heads, head_dim]
  const T* v_cache;             // like k_cache
  const int32_t* pages;         // the sequence's row of the page table
  const int32_t* prefix_len;    // [rows]
  const int32_t* suffix_slots;  // [rows, suffix_width], or null
  const int32_t* suffix_len;    // [rows], or null
  T* out;                       // [rows, query_heads, head_dim]
  float* scratch;               // [attention_scratch(rows, query_heads / kv_heads, head_dim)]
  int64_t rows;                 // all of one sequence
  int64_t q_stride;
  int32_t query_heads, kv_heads, head_dim, page_size, suffix_width;
  int32_t kv_head;  // the K/V head of this tile
  float scale;
};

struct Entry {
  float value;
  int32_t id;
};

constexpr int kBadRow = -1;

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
  // Writes the n largest entries, in the order (value descending, id ascending), without -inf and without the id `excluded`
  // (-1: none). Returns how many there are, or kBadRow if the row is bad (common/distribution.h).
  int (*largest)(const float* logits, int64_t size, int n, int32_t excluded, Entry* out);
  // out[i] = the probability of entry first + i, logits[i], under `stats` (common/distribution.h).
  void (*probabilities)(const float* logits, const float* stats, int32_t first, int64_t n, float* out);
  // times[i] = the time of entry i in an exponential race; +inf if its weight is 0 or NaN.
  void (*race_times)(const float* weights, int64_t n, int64_t seed, int32_t position, uint32_t purpose, float* times);
  double (*sum)(const float* values, int64_t n);
};

const Kernels& kernels();

}  // namespace ssd
