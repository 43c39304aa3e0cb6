// The softmaxes of an attention run's queries over some of the keys, and how two of them become one.
#pragma once

#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

// Softmaxes of all queries of a run over some keys. weighted is sum(exp(s - maximum) * v), not yet divided by sum.
struct Softmaxes {
  float* maximum;   // [queries, rounded up to whole vectors]
  float* sum;       // like maximum
  float* weighted;  // [queries, head_dim]
};

inline Softmaxes softmaxes_at(float* memory, int queries) {
  const int padded = static_cast<int>(in_vectors(queries));
  return {memory, memory + padded, memory + 2 * padded};
}

// Adds other softmaxes to `into`'s, for the queries that see the other's keys. It is not inlined, so that its bits are the same wherever
// it is called.
[[gnu::noinline]] void merge(const Softmaxes& into, const Softmaxes& other, const bool* sees, int queries, int head_dim) {
  float keep[kMaxAttentionQueries], take[kMaxAttentionQueries];
  const int padded = static_cast<int>(in_vectors(queries));  // whole vectors: all queries take the same instructions
#pragma omp simd
  for (int q = 0; q < padded; ++q) {
    const float maximum = other.maximum[q] > into.maximum[q] ? other.maximum[q] : into.maximum[q];
    keep[q] = exp_lane(into.maximum[q] - maximum);
    take[q] = exp_lane(other.maximum[q] - maximum);
  }
  for (int q = 0; q < queries; ++q) {
    if (!sees[q]) continue;
    into.maximum[q] = other.maximum[q] > into.maximum[q] ? other.maximum[q] : into.maximum[q];
    into.sum[q] = into.sum[q] * keep[q] + other.sum[q] * take[q];
    float* target = into.weighted + q * head_dim;
    const float* source = other.weighted + q * head_dim;
    for (int d = 0; d < head_dim; d += kBlock)
      store(target + d, fma(load(target + d), splat(keep[q]), load(source + d) * splat(take[q])));
  }
}

}  // namespace
}  // namespace ssd::SSD_ISA
