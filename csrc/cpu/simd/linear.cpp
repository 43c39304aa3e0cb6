// y = x · weightᵀ for one block of sixteen outputs and any number of rows.
//
// The packed weight is read once, front to back, as one stream. A 64-byte line holds one input of sixteen outputs, two (bf16)
// or four (int8). More rows therefore cost registers, not bytes. (Two blocks at once would halve the loads of x, but two
// streams read a third slower from memory.) Every output is summed in the order of its inputs, whatever the number of rows, so
// the op is row invariant. Floor: weight bytes / read bandwidth.
//
// For int8 weights, x is rounded to int8 as well: the products of a group of inputs are summed as integers, exactly, and the
// groups' sums as floats.

#include "ints.h"
#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

// Prefetch distance. Without prefetching, too few reads are in flight: on a Zen 4 with one or two rows, on a Sapphire Rapids
// with any number, and more so the more rows. There SmolLM2's int8 linears took 7.8 ms for five rows, and take 4.7 with it.
template <typename W>
constexpr int kAheadBytes = sizeof(W) == 1 ? 4096 : 2048;

template <typename W>
inline void prefetch(const W* line) {
  __builtin_prefetch(reinterpret_cast<const char*>(line) + kAheadBytes<W>);
}

template <int ROWS>
inline void multiply(const float* line, const float* x, int64_t in, Vec (&sum)[ROWS]) {
  for (int r = 0; r < ROWS; ++r) sum[r] = splat(0.0f);
  for (int64_t k = 0; k < in; ++k, line += kBlock, x += ROWS) {
    prefetch(line);
    const Vec weight = load(line);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r] = fma(weight, splat(x[r]), sum[r]);
  }
}

template <int ROWS>
inline void multiply(const bf16* line, const bf16* x, int64_t in, Vec (&sum)[ROWS]) {
  for (int r = 0; r < ROWS; ++r) sum[r] = splat(0.0f);
  for (int64_t k = 0; k < in; k += 2, line += 2 * kBlock, x += 2 * ROWS) {
    prefetch(line);
    const Pairs weight = pairs(line);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r] = dot(sum[r], weight, x + 2 * r);
  }
}

template <int ROWS>
inline void multiply(const uint8_t* block, const char* x, int64_t in, Vec (&sum)[ROWS]) {
  const uint8_t* line = block + kScaleBytes;
  for (int r = 0; r < ROWS; ++r) sum[r] = splat(0.0f);
  for (int64_t group = 0; group < in; group += kGroup, x += ROWS * kGroupBytes) {
    const auto* inputs = reinterpret_cast<const int8_t*>(x);
    const auto* offset = reinterpret_cast<const int32_t*>(x + ROWS * kGroup);
    const auto* scale = reinterpret_cast<const float*>(offset + ROWS);
    Ints products[ROWS];
    for (int r = 0; r < ROWS; ++r) products[r] = start(offset[r]);
#pragma GCC unroll 8
    for (int k = 0; k < kGroup; k += 4, line += 4 * kBlock, inputs += 4 * ROWS) {
      prefetch(line);
      const Quads weight = quads(line);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) products[r] = dot(products[r], weight, inputs + 4 * r);
    }
    for (int r = 0; r < ROWS; ++r) sum[r] = fma(to_floats(products[r]), splat(scale[r]), sum[r]);
  }
  const Vec scale = load(reinterpret_cast<const float*>(block));
  for (int r = 0; r < ROWS; ++r) sum[r] = sum[r] * scale;
}

// The tiles of x from one row on.
template <typename T>
const T* tiles_from(const LinearTile<T>& tile, int64_t row) {
  return static_cast<const T*>(tile.x) + row * tile.in;
}
template <typename T>
const char* tiles_from(const LinearTile<T, uint8_t>& tile, int64_t row) {
  return static_cast<const char*>(tile.x) + row * (tile.in / kGroup * kGroupBytes);
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
  const auto* x = tiles_from(tile, row);
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

// Rounds one group of a row, `count` inputs. x ≈ rounded · scale; a group with a number that is not finite has the scale NaN.
template <typename T>
void round_group(const T* x, int count, int8_t (&rounded)[kGroup], int32_t* offset, float* scale) {
  float values[kGroup] = {};
  uint32_t largest = 0;  // as bits, in which the order is: finite, infinite, NaN
#pragma omp simd
  for (int i = 0; i < count; ++i) values[i] = to_float(x[i]);
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(values[i]) & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const bool finite = largest < 0x7F800000u;
  const float limit = std::bit_cast<float>(largest);
  const float inverse = finite && limit > 1e-36f ? 127.0f / limit : 0.0f;  // smaller inputs count as zeros: this would overflow
  int32_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < kGroup; ++i) {
    rounded[i] = static_cast<int8_t>(static_cast<int32_t>(std::rint(values[i] * inverse)));
    total += rounded[i];
  }
  *offset = -128 * total;
  *scale = std::bit_cast<float>(finite ? std::bit_cast<uint32_t>(limit / 127.0f) : 0x7FC00000u);
}

template <typename T>
void round_rows(const T* x, int64_t rows, int64_t in, char* tile) {
  for (int64_t first = 0; first < in; first += kGroup, tile += rows * kGroupBytes) {
    const int count = static_cast<int>(in - first < kGroup ? in - first : kGroup);
    for (int64_t r = 0; r < rows; ++r) {
      int8_t rounded[kGroup];
      int32_t offset;
      float scale;
      round_group(x + r * in + first, count, rounded, &offset, &scale);
      for (int k = 0; k < kGroup; k += 4) std::memcpy(tile + k * rows + 4 * r, rounded + k, 4);
      std::memcpy(tile + rows * kGroup + 4 * r, &offset, sizeof offset);
      std::memcpy(tile + rows * (kGroup + 4) + 4 * r, &scale, sizeof scale);
    }
  }
}

}  // namespace

void linear_bf16(const LinearTile<bf16>& tile) { linear_rows(tile); }
void linear_float(const LinearTile<float>& tile) { linear_rows(tile); }
void linear_int8_bf16(const LinearTile<bf16, uint8_t>& tile) { linear_rows(tile); }
void linear_int8_float(const LinearTile<float, uint8_t>& tile) { linear_rows(tile); }
void round_rows_bf16(const bf16* x, int64_t rows, int64_t in, char* tile) { round_rows(x, rows, in, tile); }
void round_rows_float(const float* x, int64_t rows, int64_t in, char* tile) { round_rows(x, rows, in, tile); }

}  // namespace ssd::SSD_ISA
