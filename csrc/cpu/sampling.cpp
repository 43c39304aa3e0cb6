// row_stats and sample: the distribution of each row, and drawing tokens from it.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../arguments.h"
#include "../common/distribution.h"
#include "../common/philox.h"
#include "parallel.h"
#include "program.h"
#include "simd/kernels.h"

namespace ssd {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool before(const Entry& a, const Entry& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

// The entries of a row in the order (value descending, id ascending). They are sorted only up to the largest rank that was
// asked for.
class Ranking {
 public:
  Ranking(const float* logits, int64_t size) : entries_(static_cast<size_t>(size)) {
    for (int64_t i = 0; i < size; ++i) entries_[static_cast<size_t>(i)] = {logits[i], static_cast<int32_t>(i)};
  }

  const Entry& operator[](int64_t rank) {
    if (rank >= sorted_) {
      const int64_t size = static_cast<int64_t>(entries_.size());
      const int64_t end = std::min(size, std::max<int64_t>({64, 8 * sorted_, rank + 1}));
      if (end < size) std::nth_element(at(sorted_), at(end), entries_.end(), before);
      std::sort(at(sorted_), at(end), before);
      sorted_ = end;
    }
    return entries_[static_cast<size_t>(rank)];
  }

 private:
  std::vector<Entry>::iterator at(int64_t i) { return entries_.begin() + i; }
  std::vector<Entry> entries_;
  int64_t sorted_ = 0;
};

struct Processing {
  float temperature, top_p, min_p, saguaro_c;
  int64_t top_k, saguaro_f;
};

void set_cut(float* stats, const Entry& last) {
  stats[kCutValue] = last.value;
  stats[kCutId] = static_cast<float>(last.id);
}

void stats_of_row(const float* logits, int64_t size, const Processing& how, float* probabilities, float* stats) {
  Entry largest;
  if (kernels().largest(logits, size, 1, -1, &largest) == kBadRow) {
    std::fill_n(stats, static_cast<int>(kStats), std::numeric_limits<float>::quiet_NaN());
    return;
  }
  stats[kMax] = largest.value;
  stats[kLogSum] = 0.0f;
  stats[kTopValue] = kInfinity;
  stats[kTopId] = -1.0f;
  stats[kLogC] = 0.0f;
  if (how.temperature == 0.0f) {
    set_cut(stats, largest);
    stats[kScale] = 0.0f;
    return;
  }
  stats[kScale] = 1.0f / how.temperature;
  set_cut(stats, {-kInfinity, static_cast<int32_t>(size)});

  const bool limits_k = how.top_k > 0 && how.top_k < size, limits_p = how.top_p < 1.0f;
  const bool sharpens = how.saguaro_f > 0 && how.saguaro_c < 1.0f;
  if (limits_k || limits_p || sharpens) {
    Ranking ranking(logits, size);
    if (limits_k) set_cut(stats, ranking[how.top_k - 1]);
    if (limits_p) {
      kernels().probabilities(logits, stats, 0, size, probabilities);
      const double enough = static_cast<double>(how.top_p) * kernels().sum(probabilities, size);
      const int64_t limit = limits_k ? how.top_k : size;
      double cumulative = 0.0;
      int64_t rank = 0;
      do {
        cumulative += static_cast<double>(probabilities[ranking[rank].id]);
        ++rank;
      } while (rank < limit && cumulative < enough);
      set_cut(stats, ranking[rank - 1]);
    }
    if (sharpens) {
      const Entry& top = ranking[std::min(how.saguaro_f, size) - 1];
      stats[kTopValue] = top.value;
      stats[kTopId] = static_cast<float>(top.id);
    }
  }
  if (how.min_p > 0.0f) {
    const float bound = std::log(how.min_p);
    Entry last = largest;
    for (int64_t i = 0; i < size; ++i) {
      const Entry entry{logits[i], static_cast<int32_t>(i)};
      const bool kept = at_or_before(entry.value, entry.id, stats[kCutValue], stats[kCutId]);
      if (kept && (entry.value - largest.value) * stats[kScale] >= bound && before(last, entry)) last = entry;
    }
    set_cut(stats, last);
  }
  if (sharpens) stats[kLogC] = std::log(how.saguaro_c);
  kernels().probabilities(logits, stats, 0, size, probabilities);
  stats[kLogSum] = static_cast<float>(std::log(kernels().sum(probabilities, size)));
}

Tensor row_stats(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& min_p,
                 int64_t saguaro_f, double saguaro_c) {
  const LogitsSizes sizes = check_row_stats(logits, temperature, top_k, top_p, min_p, saguaro_f, saguaro_c);
  const int64_t rows = sizes.rows, size = sizes.vocabulary;
  Tensor stats = at::empty({rows, kStats}, logits.options());
  run_or_record([=] {
    float* out = stats.mutable_data_ptr<float>();
    parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(size));
      for (int64_t r = begin; r < end; ++r) {
        const int64_t s = r / sizes.rows_a_slot;
        const Processing how{temperature.const_data_ptr<float>()[s], top_p.const_data_ptr<float>()[s],
                             min_p.const_data_ptr<float>()[s],       static_cast<float>(saguaro_c),
                             top_k.const_data_ptr<int32_t>()[s],     saguaro_f};
        stats_of_row(logits.const_data_ptr<float>() + r * size, size, how, scratch.data(), out + r * kStats);
      }
    });
  });
  return stats;
}

// Ends the speculations of bad rows, whose first token is missing, after `drafted` tokens. wanted: [slots] or null.
void end_speculations(const Tensor& tokens, int64_t rows_a_slot, int64_t m, const uint8_t* wanted, const Tensor& spec_len,
                      const Tensor& bad, int64_t drafted) {
  for (int64_t s = 0; s < spec_len.size(0); ++s) {
    if (wanted != nullptr && wanted[s] == 0) continue;
    int32_t& length = spec_len.mutable_data_ptr<int32_t>()[s];
    if (length <= drafted) continue;
    const int32_t* drawn = tokens.const_data_ptr<int32_t>() + s * tokens.stride(0);
    bool spoilt = false;
    for (int64_t row = 0; row < rows_a_slot; ++row) spoilt = spoilt || drawn[row * m * tokens.stride(1)] == kNoToken;
    if (!spoilt) continue;
    bad.mutable_data_ptr<int32_t>()[s] = 1;
    if (rows_a_slot == 1) length = static_cast<int32_t>(drafted);
  }
}

void sample(const Tensor& logits, const Tensor& stats, const Tensor& seed, const Tensor& position, const Tensor& tokens,
            int64_t m, const OptionalTensor& id_of, const OptionalTensor& missed, const OptionalTensor& parity, bool next_half,
            const OptionalTensor& q_logits, const OptionalTensor& q_stats, const OptionalTensor& spec_len,
            const OptionalTensor& bad, int64_t drafted) {
  const LogitsSizes sizes =
      check_sample(logits, stats, seed, position, tokens, m, id_of, missed, parity, q_logits, q_stats, spec_len, bad, drafted);
  const int64_t rows = sizes.rows, size = sizes.vocabulary;
  run_or_record([=] {
    const int32_t* ids = pointer_or_null<int32_t>(id_of);
    const uint8_t* wanted = pointer_or_null<uint8_t>(missed);
    int64_t half = parity.has_value() ? parity->const_data_ptr<int32_t>()[0] : 0;
    TORCH_CHECK(half == 0 || half == 1, "parity must be 0 or 1, not ", half);
    if (next_half) half = 1 - half;
    parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> times;
      std::vector<Entry> best(static_cast<size_t>(m));
      for (int64_t r = begin; r < end; ++r) {
        const float* row = logits.const_data_ptr<float>() + r * size;
        const float* row_stats = stats.const_data_ptr<float>() + r * kStats;
        const int64_t s = r / sizes.rows_a_slot, of_slot = r % sizes.rows_a_slot;
        const auto keep = [&](const Tensor& q, const float* values, int64_t count) {
          float* kept = q.mutable_data_ptr<float>() + s * q.stride(0) + half * q.stride(1) + of_slot * q.stride(2);
          std::copy_n(values, count, kept);
        };
        if (q_logits.has_value()) keep(*q_logits, row, size), keep(*q_stats, row_stats, kStats);
        if (wanted != nullptr && wanted[s] == 0) continue;
        int found = 0;
        if (is_greedy(row_stats)) {
          found = kernels().largest(row, size, static_cast<int>(m), -1, best.data());
        } else {
          times.resize(static_cast<size_t>(size));
          kernels().probabilities(row, row_stats, 0, size, times.data());
          kernels().race_times(times.data(), size, seed.const_data_ptr<int64_t>()[s],
                               position.const_data_ptr<int32_t>()[r * position.stride(0)] + 1,
                               static_cast<uint32_t>(Purpose::kDraft), times.data());
          for (float& time : times) time = -time;  // the earliest is the largest
          found = kernels().largest(times.data(), size, static_cast<int>(m), -1, best.data());
        }
        int32_t* drawn = tokens.mutable_data_ptr<int32_t>() + s * tokens.stride(0) + of_slot * m * tokens.stride(1);
        for (int64_t i = 0; i < m; ++i) {
          const int32_t column = best[static_cast<size_t>(i)].id;
          drawn[i * tokens.stride(1)] = i >= found ? kNoToken : ids != nullptr ? ids[column] : column;
        }
      }
    });
    if (spec_len.has_value()) end_speculations(tokens, sizes.rows_a_slot, m, wanted, *spec_len, *bad, drafted);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) {
  m.impl("row_stats", row_stats);
  m.impl("sample", sample);
}

}  // namespace ssd
