// fork: guesses the outcomes of the verification in flight (arXiv 2603.03251, section 4).

#include <algorithm>
#include <vector>

#include "../arguments.h"
#include "../common/distribution.h"
#include "parallel.h"
#include "program.h"
#include "simd/kernels.h"

namespace ssd {
namespace {

void fork(const Tensor& logits, const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& table, const Tensor& hit,
          const Tensor& guess, const Tensor& guess_k, const OptionalTensor& id_of) {
  const ForkSizes sizes = check_fork(logits, spec_tokens, spec_len, table, hit, guess, guess_k, id_of);
  const int64_t slots = sizes.slots, lookahead = sizes.lookahead, width = lookahead + 1, size = sizes.vocabulary;
  const int64_t budget = sizes.budget;

  run_or_record([=] {
    const int32_t* ids = pointer_or_null<int32_t>(id_of);
    parallel_for(slots, 1, [&](int64_t begin, int64_t end) {
      std::vector<Entry> best(static_cast<size_t>(budget));
      for (int64_t s = begin; s < end; ++s) {
        const int64_t length = spec_len.const_data_ptr<int32_t>()[s];
        TORCH_CHECK(length >= 0 && length <= lookahead, "spec_len[", s, "] is ", length, ", outside 0..", lookahead);
        const int64_t after = hit.const_data_ptr<uint8_t>()[s] != 0 ? 1 : 0;
        const int32_t* fan_out = table.const_data_ptr<int32_t>() + (after * width + length) * width;
        int32_t* tokens = guess.mutable_data_ptr<int32_t>() + s * budget;
        int32_t* counts = guess_k.mutable_data_ptr<int32_t>() + s * budget;
        int64_t place = 0;
        for (int64_t k = 0; k <= length; ++k) {
          TORCH_CHECK(fan_out[k] >= 0 && place + fan_out[k] <= budget, "table's row for spec_len ", length,
                      " must sum to the budget of ", budget);
          // An outcome with k < L cannot continue with the drafted token, because k would then be larger.
          int32_t excluded = k < length ? spec_tokens.const_data_ptr<int32_t>()[s * lookahead + k] : -1;
          if (ids != nullptr && excluded >= 0) {
            const int32_t* column = std::lower_bound(ids, ids + size, excluded);
            excluded = column != ids + size && *column == excluded ? static_cast<int32_t>(column - ids) : -1;
          }
          const float* row = logits.const_data_ptr<float>() + (s * width + k) * size;
          const int found = kernels().largest(row, size, fan_out[k], excluded, best.data());
          for (int i = 0; i < fan_out[k]; ++i, ++place) {
            const bool real = i < found;
            const int32_t column = real ? best[static_cast<size_t>(i)].id : 0;
            tokens[place] = real && ids != nullptr ? ids[column] : column;
            counts[place] = real ? static_cast<int32_t>(k) : found == kBadRow ? kBadGuess : kNoGuess;
          }
        }
        TORCH_CHECK(place == budget, "table's row for spec_len ", length, " must sum to the budget of ", budget, ", not to ",
                    place);
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("fork", fork); }

}  // namespace ssd
