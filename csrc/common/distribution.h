// The distribution that a token is drawn from: a row of logits and eight statistics of it.
//
// Sort the vocabulary by (logit descending, id ascending). Temperature, top-k, top-p and min-p each keep a prefix of that
// order, so one cut (value, id) describes the kept set. Saguaro sampling (arXiv 2603.03251, Definition 14) multiplies the top F
// probabilities by C, which needs a second cut. With both cuts and the log-sum-exp of the kept entries, one probability costs
// one exp, and p and q are never stored as vectors. Temperature 0 is the point mass on the argmax (the lowest id wins ties);
// its scale is 0.
//
// -inf is a masked logit, which has no probability. A row is bad if it has NaN or +inf, or if no logit is finite: it has no
// distribution. Its statistics are all NaN. No comparison with NaN holds, so nothing of it is kept and every probability is 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "ssd recognises NaN and infinity, so it cannot be compiled with -ffinite-math-only, which -ffast-math includes."
#endif

namespace ssd {

// Columns of row_stats' output, [rows, kStats] float32. Ids are exact in float32 below 2^24.
enum Stat : int {
  kMax = 0,       // largest logit
  kLogSum = 1,    // log of the sum over the kept set of exp((z - max) * scale + [top F] log C)
  kCutValue = 2,  // logit of the last kept entry
  kCutId = 3,     // id of the last kept entry; the argmax for greedy decoding
  kTopValue = 4,  // logit of the last of the top F entries (+inf if C = 1)
  kTopId = 5,     // id of the last of the top F entries
  kScale = 6,     // 1 / temperature; 0 for greedy
  kLogC = 7,      // log C
  kStats = 8,
};

// Is entry (z, id) at or before the cut, in the order (value descending, id ascending)?
SSD_HOST_DEVICE bool at_or_before(float z, int32_t id, float cut_value, float cut_id) {
  return z > cut_value || (z == cut_value && static_cast<float>(id) <= cut_id);
}

SSD_HOST_DEVICE bool is_greedy(const float* stats) { return stats[kScale] == 0.0f; }

// Is a logit NaN or +inf, so that its row is bad?
SSD_HOST_DEVICE bool spoils_its_row(float z) { return !(z < INFINITY); }

// Do the statistics say that the row is bad?
SSD_HOST_DEVICE bool is_bad(const float* stats) { return std::isnan(stats[kMax]); }

constexpr int32_t kNoToken = -1;  // instead of a token that would be drawn from a bad row

// The values of `done`, a sequence's flag.
enum Done : uint8_t {
  kRunning = 0,
  kFinished = 1,  // by an end-of-sequence token, or at its largest length
  kFailed = 2,    // the target's row for its next token is bad
};

// Values of `guess_k` where there is no guess.
constexpr int32_t kNoGuess = -1;   // the row has too few entries
constexpr int32_t kBadGuess = -2;  // the row is bad

// The probability of entry `id`, whose logit is z, under the processed distribution. exp: the back end's exponential function.
// There are no branches, so that a loop over entries vectorises.
template <typename Exp>
SSD_HOST_DEVICE float probability(float z, int32_t id, const float* stats, Exp exp) {
  const float as_float = static_cast<float>(id);
  const bool kept = (z > stats[kCutValue]) | ((z == stats[kCutValue]) & (as_float <= stats[kCutId]));
  const bool top = (z > stats[kTopValue]) | ((z == stats[kTopValue]) & (as_float <= stats[kTopId]));
  const float drawn = exp((z - stats[kMax]) * stats[kScale] + (top ? stats[kLogC] : 0.0f) - stats[kLogSum]);
  return kept ? (is_greedy(stats) ? 1.0f : drawn) : 0.0f;
}

// The time of an entry of weight w > 0 in an exponential race. The entry with the least time wins, with probability w / sum(w).
SSD_HOST_DEVICE float race_time(float u, float weight) { return -log1pf(-u) / weight; }

// Is a proposal accepted that has probability q under the draft and p under the target? In a tree, p and q are the
// probabilities that remain after earlier siblings were rejected.
SSD_HOST_DEVICE bool accepts(float u, float p, float q) { return u * q < p; }

// The residual weight after a rejection. It is not normalised, because an exponential race needs no normalised weights.
SSD_HOST_DEVICE float residual(float p, float q) { return p > q ? p - q : 0.0f; }

}  // namespace ssd
