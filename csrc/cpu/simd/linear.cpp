// y = x · weightᵀ for two blocks of sixteen outputs and any number of rows.
//
// The packed weight is read front to back once: sixteen outputs, and for bf16 two consecutive inputs of each, fill one 64-byte
// line, so a decode step is a plain stream over memory and more rows cost registers, not bytes. Every output is one chain of
// sums in the order of its inputs, whatever the number of rows, which is what makes the op row invariant. Floor: weight bytes /
// read bandwidth.

#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

inline void step(Vec& a, Vec& b, const float* weight_a, const float* weight_b, const float* x) {
  const Vec input = splat(*x);
  a = fma(load(weight_a), input, a);
  b = fma(load(weight_b), input, b);
}

inline void step(Vec& a, Vec& b, const bf16* weight_a, const bf16* weight_b, const bf16* x) {
  a = dot_pair(a, weight_a, x);
  b = dot_pair(b, weight_b, x);
}

template <typename T>
constexpr int kInputsAStep = sizeof(T) == sizeof(float) ? 1 : 2;

template <typename T, int ROWS>
void rows_tile(const LinearTile<T>& tile, int64_t row) {
  Vec a[ROWS], b[ROWS];
  for (int r = 0; r < ROWS; ++r) a[r] = b[r] = splat(0.0f);
  const T* x = tile.x + row * tile.x_stride;
  for (int64_t k = 0; k < tile.in; k += kInputsAStep<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      step(a[r], b[r], tile.weight_a + k * kBlock, tile.weight_b + k * kBlock, x + r * tile.x_stride + k);
  }
  for (int r = 0; r < ROWS; ++r) {
    store(tile.y + (row + r) * 2 * kBlock, a[r]);
    store(tile.y + (row + r) * 2 * kBlock + kBlock, b[r]);
  }
}

template <typename T, int ROWS>
void remaining_rows(const LinearTile<T>& tile, int64_t row) {
  if (row == tile.rows) return;
  if (tile.rows - row >= ROWS) {
    rows_tile<T, ROWS>(tile, row);
    row += ROWS;
  }
  if constexpr (ROWS > 1) remaining_rows<T, ROWS - 1>(tile, row);
}

template <typename T>
void linear_rows(const LinearTile<T>& tile) {
  int64_t row = 0;
  for (; row + kRowTile <= tile.rows; row += kRowTile) rows_tile<T, kRowTile>(tile, row);
  remaining_rows<T, kRowTile - 1>(tile, row);
}

}  // namespace

void linear_bf16(const LinearTile<bf16>& tile) { linear_rows(tile); }
void linear_float(const LinearTile<float>& tile) { linear_rows(tile); }

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_lane(-gate[i])) * up[i];
}

}  // namespace ssd::SSD_ISA
