// Loops over one row: the largest entries, probabilities and exponential races of a row of the vocabulary, and RMSNorm.

#include <limits>

#include "../../common/distribution.h"
#include "../../common/philox.h"
#include "table.h"
#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

template <typename T>
void rms_norm(const T* x, const T* weight, float eps, int64_t d, T* y) {
  Vec squares = splat(0.0f);
  int64_t i = 0;
  for (; i + kBlock <= d; i += kBlock) squares = fma(load(x + i), load(x + i), squares);
  float total = reduce_add(squares);
  for (; i < d; ++i) total += to_float(x[i]) * to_float(x[i]);
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(d) + eps);
  for (i = 0; i < d; ++i) from_float(to_float(x[i]) * scale * to_float(weight[i]), y + i);
}

}  // namespace

void rms_norm_bf16(const bf16* x, const bf16* weight, float eps, int64_t d, bf16* y) { rms_norm(x, weight, eps, d, y); }
void rms_norm_float(const float* x, const float* weight, float eps, int64_t d, float* y) { rms_norm(x, weight, eps, d, y); }

int largest(const float* logits, int64_t size, int n, int32_t excluded, Entry* out) {
  if (n <= 0) return 0;
  int count = 0;
  bool finite = false, spoilt = false;
  // Ids come in ascending order, so only a strictly larger value replaces an entry.
  const auto offer = [&](int32_t id) {
    const float value = logits[id];
    spoilt = spoilt || spoils_its_row(value);
    if (spoilt || value == -std::numeric_limits<float>::infinity()) return;
    finite = true;
    if (id == excluded || !(count < n || value > out[n - 1].value)) return;
    int place = count < n ? count++ : n - 1;
    for (; place > 0 && value > out[place - 1].value; --place) out[place] = out[place - 1];
    out[place] = {value, id};
  };
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    if (count == n && all_at_most(load(logits + i), out[n - 1].value)) continue;
    for (int lane = 0; lane < kBlock; ++lane) offer(static_cast<int32_t>(i + lane));
  }
  for (; i < size; ++i) offer(static_cast<int32_t>(i));
  return finite && !spoilt ? count : kBadRow;
}

void probabilities(const float* logits, const float* stats, int32_t first, int64_t n, float* out) {
  float own[kStats];  // a copy, which the compiler knows not to alias `out`
  std::memcpy(own, stats, sizeof own);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = probability(logits[i], first + static_cast<int32_t>(i), own, exp_lane);
}

void race_times(const float* weights, int64_t n, int64_t seed, int32_t position, uint32_t purpose, float* times) {
  constexpr int kGroup = 4 * kBlock;  // four words from each of sixteen calls of Philox, which run as one vector
  for (int64_t base = 0; base < n; base += kGroup) {
    const int64_t count = n - base < kGroup ? n - base : kGroup;
    alignas(64) float u[kGroup];
#pragma omp simd
    for (int call = 0; call < kBlock; ++call) {
      const Philox4 words = draw_words(seed, position, static_cast<Purpose>(purpose), 0, static_cast<int32_t>(base / 4) + call);
      for (int w = 0; w < 4; ++w) u[4 * call + w] = race_uniform(words.word[w]);
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float weight = weights[base + i];
      const float time = -log1p_lane(-u[i]) / weight;
      times[base + i] = weight > 0.0f ? time : std::numeric_limits<float>::infinity();
    }
  }
}

double sum(const float* values, int64_t n) {
  double total = 0.0;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) total += static_cast<double>(reduce_add(load(values + i)));
  for (; i < n; ++i) total += static_cast<double>(values[i]);
  return total;
}

}  // namespace ssd::SSD_ISA
