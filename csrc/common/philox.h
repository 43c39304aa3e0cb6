// Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
//
// There is no state. A random number is a function of (request, token position, purpose, sibling, vocabulary entry) and of
// nothing else. So a token meets the same noise whether it is drafted on a hit, on a miss or by plain speculative decoding.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ssd {

// The purpose of a random number. The draft and the verifier must never share numbers: acceptance would then depend on the
// proposal, and the output would leave the target's distribution.
enum class Purpose : uint32_t { kAccept = 0, kResample = 1, kDraft = 2 };

struct Philox4 {
  uint32_t word[4];
};

SSD_HOST_DEVICE Philox4 philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c0;
    const uint64_t b = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = static_cast<uint32_t>(b);
    c2 = n2;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of one draw for the vocabulary entries 4 * block .. 4 * block + 3.
SSD_HOST_DEVICE Philox4 draw_words(int64_t seed, int32_t position, Purpose purpose, int32_t sibling, int32_t block) {
  return philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(position), static_cast<uint32_t>(purpose),
                static_cast<uint32_t>(sibling), static_cast<uint32_t>(block));
}

// Uniform in [0, 1), for acceptance. It has 24 bits, so that every value is exact in float32.
SSD_HOST_DEVICE float uniform(uint32_t x) { return static_cast<float>(x >> 8) * 0x1p-24f; }

// Uniform in (0, 1 - 2^-24], for exponential races. Small values keep their full relative precision, because small values win.
SSD_HOST_DEVICE float race_uniform(uint32_t x) {
  const float u = (static_cast<float>(x) + 0.5f) * 0x1p-32f;
  return u < 1.0f - 0x1p-24f ? u : 1.0f - 0x1p-24f;
}

}  // namespace ssd
