// Ints, sixteen int32 sums, and Quads, four int8 weights for each of them. Everything here is private to the file that includes
// it.
//
// A packed int8 weight is stored as weight + 128, because the instructions that multiply four bytes at once want one unsigned
// factor. dot() therefore sums (weight + 128) * x, or weight * x, as the instruction set likes it best. A sum begins with
// start(-128 * sum of x), which makes both the same number. Each sum is exact.
#pragma once

#include "vec.h"

namespace ssd::SSD_ISA {
namespace {

#if defined(__AVX2__)
inline int32_t four(const int8_t* x) {
  int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return bytes;
}
#endif

#if defined(__AVX512VNNI__)

struct Ints {
  __m512i v;
};
using Quads = Ints;

inline Ints start(int32_t offset) { return {_mm512_set1_epi32(offset)}; }
inline Quads quads(const uint8_t* line) { return {_mm512_loadu_si512(line)}; }
inline Ints dot(Ints sum, Quads w, const int8_t* x) { return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(four(x)))}; }
inline Vec to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }

#elif defined(__AVX2__)

struct Ints {
  __m256i lo, hi;
};

inline Vec to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

#if defined(__AVXVNNI__)

using Quads = Ints;

inline Ints start(int32_t offset) { return {_mm256_set1_epi32(offset), _mm256_set1_epi32(offset)}; }
inline Quads quads(const uint8_t* line) {
  const auto* source = reinterpret_cast<const __m256i*>(line);
  return {_mm256_loadu_si256(source), _mm256_loadu_si256(source + 1)};
}
inline Ints dot(Ints sum, const Quads& w, const int8_t* x) {
  const __m256i all = _mm256_set1_epi32(four(x));
  return {_mm256_dpbusd_avx_epi32(sum.lo, w.lo, all), _mm256_dpbusd_avx_epi32(sum.hi, w.hi, all)};
}

#else

// maddubs adds two products of bytes in 16 bits, with saturation. (weight + 128) * x would saturate: 2 * 255 * 127 > 32767.
// |weight| * ±x does not: 2 * 128 * 127 < 32767. So weights are split into their magnitude and their sign.
struct Quads {
  __m256i weight_lo, weight_hi, magnitude_lo, magnitude_hi;
};

inline Ints start(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Quads quads(const uint8_t* line) {
  const auto* source = reinterpret_cast<const __m256i*>(line);
  const __m256i shift = _mm256_set1_epi8(static_cast<char>(0x80));
  const __m256i lo = _mm256_xor_si256(_mm256_loadu_si256(source), shift);
  const __m256i hi = _mm256_xor_si256(_mm256_loadu_si256(source + 1), shift);
  return {lo, hi, _mm256_abs_epi8(lo), _mm256_abs_epi8(hi)};
}
inline __m256i add_products(__m256i sum, __m256i magnitude, __m256i weight, __m256i x) {
  const __m256i twos = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, weight));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
}
inline Ints dot(Ints sum, const Quads& w, const int8_t* x) {
  const __m256i all = _mm256_set1_epi32(four(x));
  return {add_products(sum.lo, w.magnitude_lo, w.weight_lo, all), add_products(sum.hi, w.magnitude_hi, w.weight_hi, all)};
}

#endif

#else

struct Ints {
  int32_t v[kBlock];
};
struct Quads {
  const uint8_t* line;
};

inline Ints start(int32_t offset) {
  Ints sum;
  for (int32_t& lane : sum.v) lane = offset;
  return sum;
}
inline Quads quads(const uint8_t* line) { return {line}; }
inline Ints dot(Ints sum, const Quads& w, const int8_t* x) {
  for (int i = 0; i < kBlock; ++i)
    for (int j = 0; j < 4; ++j) sum.v[i] += w.line[4 * i + j] * x[j];
  return sum;
}
inline Vec to_floats(const Ints& a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}

#endif

}  // namespace
}  // namespace ssd::SSD_ISA
