// Vec, sixteen floats, with the same functions for every instruction set. Everything here is private to the file that includes
// it. No comparison with NaN holds: all_at_most is false if a lane is NaN.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ssd::SSD_ISA {
namespace {

#if defined(__AVX512BF16__)

struct Vec {
  __m512 v;
};

inline Vec splat(float a) { return {_mm512_set1_ps(a)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline bool all_at_most(Vec a, float b) { return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(b), _CMP_NLE_UQ) == 0; }
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

// Two weights for each lane. Every int8 value is exact in bf16.
struct Pairs {
  __m512bh v;
};

inline Pairs pairs(const bf16* w) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(w))}; }
inline Pairs pairs(const int8_t* w) {
  const auto* source = reinterpret_cast<const __m128i*>(w);
  const __m512 lo = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(source)));
  const __m512 hi = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(source + 1)));
  return {_mm512_cvtne2ps_pbh(hi, lo)};
}

// acc[i] += w[2i] * x[0] + w[2i + 1] * x[1]
inline Vec dot(Vec acc, Pairs w, const bf16* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return {_mm512_dpbf16_ps(acc.v, w.v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)))};
}

#elif defined(__AVX2__)

struct Vec {
  __m256 lo, hi;
};

inline Vec splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 widen(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline Vec load(const bf16* p) {
  const auto* source = reinterpret_cast<const __m128i*>(p);
  return {widen(_mm_loadu_si128(source)), widen(_mm_loadu_si128(source + 1))};
}
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline bool all_at_most(Vec a, float b) {
  const __m256 bound = _mm256_set1_ps(b);
  const __m256 either = _mm256_or_ps(_mm256_cmp_ps(a.lo, bound, _CMP_NLE_UQ), _mm256_cmp_ps(a.hi, bound, _CMP_NLE_UQ));
  return _mm256_movemask_ps(either) == 0;
}
inline float reduce_add(Vec a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline float reduce_max(Vec a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

struct Pairs {
  __m256i lo, hi;
};

inline Pairs pairs(const bf16* w) {
  const auto* source = reinterpret_cast<const __m256i*>(w);
  return {_mm256_loadu_si256(source), _mm256_loadu_si256(source + 1)};
}
inline __m256i eight_pairs(const int8_t* w) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  const auto upper_half = [](__m128i eight) {
    return _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))), 16);
  };
  const __m256i packed = _mm256_packus_epi32(upper_half(bytes), upper_half(_mm_srli_si128(bytes, 8)));
  return _mm256_permute4x64_epi64(packed, 0xD8);
}
inline Pairs pairs(const int8_t* w) { return {eight_pairs(w), eight_pairs(w + kBlock)}; }

inline Vec dot(Vec acc, Pairs w, const bf16* x) {
  const __m256i lo = w.lo, hi = w.hi;
  const __m256i odd = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
  const Vec x0 = splat(std::bit_cast<float>(static_cast<uint32_t>(x[0].bits) << 16));
  const Vec x1 = splat(std::bit_cast<float>(static_cast<uint32_t>(x[1].bits) << 16));
  acc = fma({_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))}, x0, acc);
  return fma({_mm256_castsi256_ps(_mm256_and_si256(lo, odd)), _mm256_castsi256_ps(_mm256_and_si256(hi, odd))}, x1, acc);
}

#else

struct Vec {
  float v[kBlock];
};

inline float widen(bf16 a) { return std::bit_cast<float>(static_cast<uint32_t>(a.bits) << 16); }
template <typename F>
inline Vec each(F&& lane) {
  Vec r;
  for (int i = 0; i < kBlock; ++i) r.v[i] = lane(i);
  return r;
}
inline Vec splat(float a) {
  return each([=](int) { return a; });
}
inline Vec load(const float* p) {
  return each([=](int i) { return p[i]; });
}
inline Vec load(const bf16* p) {
  return each([=](int i) { return widen(p[i]); });
}
inline void store(float* p, Vec a) { std::memcpy(p, a.v, sizeof a.v); }
inline Vec operator+(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec operator*(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline bool all_at_most(Vec a, float b) {
  bool all = true;
  for (int i = 0; i < kBlock; ++i) all &= a.v[i] <= b;
  return all;
}
inline float reduce_add(Vec a) {
  for (int width = kBlock / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
inline float reduce_max(Vec a) {
  float largest = a.v[0];
  for (int i = 1; i < kBlock; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest;
}
struct Pairs {
  Vec first, second;
};

inline Pairs pairs(const bf16* w) {
  return {each([=](int i) { return widen(w[2 * i]); }), each([=](int i) { return widen(w[2 * i + 1]); })};
}
inline Pairs pairs(const int8_t* w) {
  return {each([=](int i) { return static_cast<float>(w[2 * i]); }),
          each([=](int i) { return static_cast<float>(w[2 * i + 1]); })};
}
inline Vec dot(Vec acc, const Pairs& w, const bf16* x) {
  const float x0 = widen(x[0]), x1 = widen(x[1]);
  return each([&](int i) { return (acc.v[i] + w.first.v[i] * x0) + w.second.v[i] * x1; });
}

#endif

inline float to_float(float a) { return a; }
inline float to_float(bf16 a) { return std::bit_cast<float>(static_cast<uint32_t>(a.bits) << 16); }

// Rounds to nearest even; NaN stays NaN.
inline void from_float(float a, float* out) { *out = a; }
inline void from_float(float a, bf16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(a);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(a == a ? rounded : 0x7FC0u);
}

// e^a to about 1 ulp for a <= 88; 0 below -87.3. There are no branches, so that the compiler vectorises a loop of these.
inline float exp_lane(float a) {
  const float x = a < -87.3f ? -87.3f : (a > 88.0f ? 88.0f : a);
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const float value = poly * r * r + r + 1.0f;
  const float two_n = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
  return a < -87.3f ? 0.0f : value * two_n;
}

// log(1 + x) for -1 < x <= 0, to about 1 ulp also for small x: the log of the rounded sum, plus a correction for the rounding.
inline float log1p_lane(float x) {
  const float w = 1.0f + x;
  const float lost = x - (w - 1.0f);
  const uint32_t bits = std::bit_cast<uint32_t>(w) - 0x3F3504F3u;  // mantissa to [sqrt(1/2), sqrt(2))
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float m = std::bit_cast<float>((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float poly = 7.0376836292e-2f;
  poly = poly * m - 1.1514610310e-1f;
  poly = poly * m + 1.1676998740e-1f;
  poly = poly * m - 1.2420140846e-1f;
  poly = poly * m + 1.4249322787e-1f;
  poly = poly * m - 1.6668057665e-1f;
  poly = poly * m + 2.0000714765e-1f;
  poly = poly * m - 2.4999993993e-1f;
  poly = poly * m + 3.3333331174e-1f;
  const float log_m = m + m * m * (poly * m - 0.5f);
  return exponent * 0.693147182f + log_m + lost / w;
}

inline void store(bf16* p, Vec a) {
  float lanes[kBlock];
  store(lanes, a);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) from_float(lanes[i], p + i);
}

// a / (1 + e^-a)
inline Vec silu(Vec a) {
  float lanes[kBlock];
  store(lanes, a);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) lanes[i] = lanes[i] / (1.0f + exp_lane(-lanes[i]));
  return load(lanes);
}

}  // namespace
}  // namespace ssd::SSD_ISA
