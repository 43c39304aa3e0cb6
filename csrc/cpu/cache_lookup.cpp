// cache_lookup: returns the branch that was drafted for the outcome, if there is one.

#include <algorithm>

#include "../arguments.h"
#include "../common/distribution.h"
#include "program.h"

namespace ssd {
namespace {

void cache_lookup(const Tensor& outcome, const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens,
                  const Tensor& length, const Tensor& last_token, const Tensor& max_length, const Tensor& done,
                  const OptionalTensor& nodes_within, int64_t draft_context, const Tensor& parity, const Tensor& draft_length,
                  const Tensor& draft_last_token, const Tensor& spec_tokens, const Tensor& spec_len, const Tensor& hit,
                  const Tensor& missed, const Tensor& q_address, const Tensor& bad) {
  const auto [slots, budget, lookahead, depth] = check_cache_lookup(
      outcome, guess, guess_k, branch_tokens, length, last_token, max_length, done, nodes_within, draft_context, parity,
      draft_length, draft_last_token, spec_tokens, spec_len, hit, missed, q_address, bad);
  run_or_record([=] {
    const int32_t* nodes = pointer_or_null<int32_t>(nodes_within);
    for (int64_t d = 0; nodes != nullptr && d <= depth; ++d)
      TORCH_CHECK(nodes[d] >= 0 && nodes[d] <= lookahead, "nodes_within[", d, "] is ", nodes[d], ", outside 0..", lookahead);
    int32_t* half = parity.mutable_data_ptr<int32_t>();
    TORCH_CHECK(*half == 0 || *half == 1, "parity must be 0 or 1, not ", *half);

    for (int64_t s = 0; s < slots; ++s) {
      const int32_t* decided = outcome.const_data_ptr<int32_t>() + (s * 2 + *half) * 2;
      const int32_t* counts = guess_k.const_data_ptr<int32_t>() + s * budget;
      const int32_t* guesses = guess.const_data_ptr<int32_t>() + s * budget;
      const int32_t n = length.const_data_ptr<int32_t>()[s];
      const bool fits = n < draft_context, proposes = fits && done.const_data_ptr<uint8_t>()[s] == 0;
      const bool looks_up = decided[0] >= 0 && proposes;
      int64_t branch = budget;
      for (int64_t b = 0; b < budget && branch == budget && looks_up; ++b)
        if (counts[b] == decided[0] && guesses[b] == decided[1]) branch = b;
      bool spoilt = looks_up && std::find(counts, counts + budget, kBadGuess) != counts + budget;

      draft_length.mutable_data_ptr<int32_t>()[s] = fits ? n : 0;
      draft_last_token.mutable_data_ptr<int32_t>()[s] = last_token.const_data_ptr<int32_t>()[s];
      // The sequence has n + 1 tokens, and a round commits up to spec_len + 1 more. The draft's last row is at n + spec_len - 1.
      const int64_t room = std::min<int64_t>(max_length.const_data_ptr<int32_t>()[s] - int64_t{2}, draft_context) - n;
      const int64_t levels = proposes ? std::clamp<int64_t>(room, 0, depth) : 0;
      int64_t proposed = nodes != nullptr ? nodes[levels] : levels;
      missed.mutable_data_ptr<uint8_t>()[s] = branch == budget && proposed > 0 ? 1 : 0;
      hit.mutable_data_ptr<uint8_t>()[s] = branch < budget ? 1 : 0;
      q_address.mutable_data_ptr<int32_t>()[s] = static_cast<int32_t>(branch);
      int32_t* speculation = spec_tokens.mutable_data_ptr<int32_t>() + s * lookahead;
      if (branch < budget) {
        std::copy_n(branch_tokens.const_data_ptr<int32_t>() + (s * budget + branch) * lookahead, lookahead, speculation);
        const int64_t drawn = std::find(speculation, speculation + proposed, kNoToken) - speculation;  // before a bad row
        spoilt = spoilt || drawn < proposed;
        proposed = drawn;
      } else {
        std::fill_n(speculation, lookahead, 0);
      }
      spec_len.mutable_data_ptr<int32_t>()[s] = static_cast<int32_t>(proposed);
      bad.mutable_data_ptr<int32_t>()[s] = spoilt ? 1 : 0;
    }
    *half ^= 1;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("cache_lookup", cache_lookup); }

}  // namespace ssd
