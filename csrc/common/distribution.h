// What a token is drawn from, as a row of logits and eight statistics of it.
//
// Temperature, top-k, top-p and min-p all keep a prefix of the vocabulary in the order (logit descending, id ascending), so the
// kept set is one cut (value, id). Saguaro sampling (arXiv 2603.03251, Definition 14) multiplies the top F probabilities by C:
// a second cut. With the cuts and the log-sum-exp of what is left, any single probability costs one exp, and p and q are
// never stored as vectors. Temperature 0 is the point mass on the argmax (lowest id wins ties): scale = 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ssd {

// Columns of row_stats' output, [rows, kStats] float32. Ids are exact in float32 below 2^24.
enum Stat : int {
  kMax = 0,       // largest logit
  kLogSum = 1,    // log of the sum over the kept set of exp((z - max) * scale + [top F] log C)
  kCutValue = 2,  // the last kept entry: its logit
  kCutId = 3,     //                      and its id
  kTopValue = 4,  // the last of the top F entries: its logit (+inf where C = 1)
  kTopId = 5,     //                                and its id
  kScale = 6,     // 1 / temperature; 0 for greedy
  kLogC = 7,      // log C
  kStats = 8,
};

// (value descending, id ascending): is entry (z, id) at or before the cut?
SSD_HOST_DEVICE bool at_or_before(float z, int32_t id, float cut_value, float cut_id) {
  return z > cut_value || (z == cut_value && static_cast<float>(id) <= cut_id);
}

SSD_HOST_DEVICE bool is_greedy(const float* stats) { return stats[kScale] == 0.0f; }

// The probability of entry `id`, whose logit is z, under the processed distribution. exp: the back end's own. Written without
// branches, so that a loop over entries vectorises.
template <typename Exp>
SSD_HOST_DEVICE float probability(float z, int32_t id, const float* stats, Exp exp) {
  const float as_float = static_cast<float>(id);
  const bool kept = (z > stats[kCutValue]) | ((z == stats[kCutValue]) & (as_float <= stats[kCutId]));
  const bool top = (z > stats[kTopValue]) | ((z == stats[kTopValue]) & (as_float <= stats[kTopId]));
  const float drawn = exp((z - stats[kMax]) * stats[kScale] + (top ? stats[kLogC] : 0.0f) - stats[kLogSum]);
  return kept ? (is_greedy(stats) ? 1.0f : drawn) : 0.0f;
}

// The time at which an entry of weight w > 0 rings in an exponential race; the earliest wins with probability w / sum(w).
SSD_HOST_DEVICE float race_time(float u, float weight) { return -log1pf(-u) / weight; }

// Chain and tree alike: take a proposal of probability q under the draft and p under the target (or under the residual that
// earlier siblings left).
SSD_HOST_DEVICE bool accepts(float u, float p, float q) { return u * q < p; }

// The residual weight after a rejection, not normalised: an exponential race does not need it to be.
SSD_HOST_DEVICE float residual(float p, float q) { return p > q ? p - q : 0.0f; }

}  // namespace ssd
