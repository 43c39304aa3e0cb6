// rank_outcomes: the rank of each outcome's token among the draft's guesses, from which the fan-out learns.

#include <algorithm>
#include <limits>

#include "../arguments.h"
#include "parallel.h"
#include "program.h"

namespace ssd {
namespace {

void rank_outcomes(const Tensor& logits, const Tensor& outcome, const Tensor& parity, const Tensor& spec_tokens,
                   const Tensor& spec_len, const Tensor& hit, const Tensor& done, const Tensor& length,
                   const OptionalTensor& draft_id_of, int64_t budget, int64_t draft_context, const Tensor& seen) {
  const RankSizes sizes = check_rank_outcomes(logits, outcome, parity, spec_tokens, spec_len, hit, done, length, draft_id_of,
                                              budget, draft_context, seen);
  run_or_record([=] {
    const int64_t half = parity.const_data_ptr<int32_t>()[0];
    TORCH_CHECK(half == 0 || half == 1, "parity must be 0 or 1, not ", half);
    const int32_t* columns = pointer_or_null<int32_t>(draft_id_of);
    // The draft's column of a target id; -1 if the draft lacks it.
    const auto column_of = [&](int64_t token) -> int64_t {
      if (token < 0 || (columns != nullptr && token >= sizes.target_vocabulary)) return -1;
      const int64_t column = columns != nullptr ? columns[token] : token;
      return column < sizes.vocabulary ? column : -1;
    };
    parallel_for(sizes.slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const int32_t* decided = outcome.const_data_ptr<int32_t>() + (s * 2 + half) * 2;
        int32_t* result = seen.mutable_data_ptr<int32_t>() + s * kSeenColumns;
        std::fill_n(result, kSeenColumns, -1);
        const int64_t node = decided[0];
        const bool proposes = done.const_data_ptr<uint8_t>()[s] == 0 && length.const_data_ptr<int32_t>()[s] < draft_context;
        if (node < 0 || !proposes) continue;
        TORCH_CHECK(node < sizes.nodes, "outcome[", s, ", ", half, "] is at node ", node, ", outside 0..", sizes.nodes - 1);
        const int32_t drafted = spec_len.const_data_ptr<int32_t>()[s];
        const int64_t column = column_of(decided[1]);
        // An outcome before the end of the speculation cannot continue with the drafted token, so nobody guesses it.
        const int64_t excluded = node < std::min<int64_t>(drafted, sizes.nodes - 1)
                                     ? column_of(spec_tokens.const_data_ptr<int32_t>()[s * (sizes.nodes - 1) + node])
                                     : -1;
        int64_t rank = std::max(sizes.vocabulary, budget);  // of a token that the draft cannot propose
        const float* row = logits.const_data_ptr<float>() + (s * sizes.nodes + node) * sizes.vocabulary;
        const float value = column >= 0 ? row[column] : -std::numeric_limits<float>::infinity();
        if (value > -std::numeric_limits<float>::infinity()) {  // NaN and masked tokens are never guessed
          rank = 0;
          for (int64_t i = 0; i < sizes.vocabulary; ++i)
            rank += ((row[i] > value) | ((row[i] == value) & (i < column))) & (i != excluded) ? 1 : 0;
        }
        result[kSeenHit] = hit.const_data_ptr<uint8_t>()[s] != 0 ? 1 : 0;
        result[kSeenSpecLen] = drafted;
        result[kSeenNode] = static_cast<int32_t>(node);
        result[kSeenRank] = static_cast<int32_t>(rank);
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("rank_outcomes", rank_outcomes); }

}  // namespace ssd
