// y = x · weightᵀ for one block of sixteen outputs and any number of rows.
//
// The packed weight is read once, front to back, as one stream. A 64-byte line holds one input of sixteen outputs, or for bf16
// two consecutive inputs. More rows therefore cost registers, not bytes. (Two blocks at once would halve the loads of x, but
// two streams read a third slower from memory.) Every output is summed in the order of its inputs, whatever the number of rows,
// so the op is row invariant. Floor: weight bytes / read bandwidth.

#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

// The weights of one step: one input (float) or two inputs (bf16, int8), for sixteen outputs.
inline Vec weights(const float* line) { return load(line); }
inline Pairs weights(const bf16* line) { return pairs(line); }
inline Pairs weights(const int8_t* line) { return pairs(line); }

inline Vec step(Vec sum, Vec weight, const float* x) { return fma(weight, splat(*x), sum); }
inline Vec step(Vec sum, const Pairs& weight, const bf16* x) { return dot(sum, weight, x); }

template <typename T>
constexpr int kInputsAStep = sizeof(T) == sizeof(float) ? 1 : 2;

// A block of int8 weights begins with its scales.
template <typename W>
const W* first_line(const W* block) {
  return block;
}
inline const int8_t* first_line(const int8_t* block) { return block + kScaleBytes; }

template <typename W>
Vec scaled(Vec sum, const W*) {
  return sum;
}
inline Vec scaled(Vec sum, const int8_t* block) { return sum * load(reinterpret_cast<const float*>(block)); }

constexpr int kAheadBytes = 2048;  // prefetch distance; one or two rows do not keep enough reads in flight without it

template <typename T, typename W, int ROWS>
inline void multiply(const W* block, const T* x, int64_t in, Vec (&sum)[ROWS]) {
  const W* line = first_line(block);
  for (int r = 0; r < ROWS; ++r) sum[r] = splat(0.0f);
  for (int64_t k = 0; k < in; k += kInputsAStep<T>) {
    if constexpr (ROWS <= 2) __builtin_prefetch(reinterpret_cast<const char*>(line) + kAheadBytes);
    const auto weight = weights(line);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r] = step(sum[r], weight, x + r * kInputsAStep<T>);
    line += kInputsAStep<T> * kBlock;
    x += kInputsAStep<T> * ROWS;
  }
  for (int r = 0; r < ROWS; ++r) sum[r] = scaled(sum[r], block);
}

template <typename T>
Vec load_some(const T* p, int count) {
  if (count == kBlock) return load(p);
  T all[kBlock] = {};
  for (int i = 0; i < count; ++i) all[i] = p[i];
  return load(all);
}

template <typename Y>
void store_some(Y* p, Vec a, int count) {
  if (count == kBlock) return store(p, a);
  Y all[kBlock];
  store(all, a);
  for (int i = 0; i < count; ++i) p[i] = all[i];
}

template <typename T, typename W>
void finish(const LinearTile<T, W>& tile, int64_t row, Vec sum, const Vec* gate) {
  if (tile.bias != nullptr) sum = sum + load_some(tile.bias, tile.outputs);
  if (gate != nullptr) {
    const Vec biased = tile.gate_bias != nullptr ? *gate + load_some(tile.gate_bias, tile.outputs) : *gate;
    sum = silu(biased) * sum;
  }
  const int64_t at = row * tile.y_stride;
  if (tile.residual != nullptr) sum = sum + load_some(tile.residual + at, tile.outputs);
  if (tile.float32_out) {
    store_some(static_cast<float*>(tile.y) + at, sum, tile.outputs);
  } else {
    store_some(static_cast<T*>(tile.y) + at, sum, tile.outputs);
  }
}

template <int ROWS, typename T, typename W>
void rows_tile(const LinearTile<T, W>& tile, int64_t row) {
  const T* x = tile.x + row * tile.in;
  Vec sum[ROWS];
  if (tile.gate != nullptr) {
    Vec gate[ROWS];
    multiply(tile.gate, x, tile.in, gate);
    multiply(tile.weight, x, tile.in, sum);
    for (int r = 0; r < ROWS; ++r) finish(tile, row + r, sum[r], gate + r);
  } else {
    multiply(tile.weight, x, tile.in, sum);
    for (int r = 0; r < ROWS; ++r) finish(tile, row + r, sum[r], nullptr);
  }
}

// Computes the last rows, fewer than kRowTile, as one smaller tile.
template <int ROWS, typename T, typename W>
void last_rows(const LinearTile<T, W>& tile, int64_t row) {
  if constexpr (ROWS > 0) {
    if (tile.rows - row == ROWS) return rows_tile<ROWS>(tile, row);
    last_rows<ROWS - 1>(tile, row);
  }
}

template <typename T, typename W>
void linear_rows(const LinearTile<T, W>& tile) {
  int64_t row = 0;
  for (; row + kRowTile <= tile.rows; row += kRowTile) rows_tile<kRowTile>(tile, row);
  last_rows<kRowTile - 1>(tile, row);
}

}  // namespace

void linear_bf16(const LinearTile<bf16>& tile) { linear_rows(tile); }
void linear_float(const LinearTile<float>& tile) { linear_rows(tile); }
void linear_int8(const LinearTile<bf16, int8_t>& tile) { linear_rows(tile); }

}  // namespace ssd::SSD_ISA
