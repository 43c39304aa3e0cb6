// cache_lookup: hand out the branch that was drafted for the outcome, if there is one.

#include <algorithm>

#include "../checks.h"

namespace ssd {
namespace {

void cache_lookup(const Tensor& outcome, const Tensor& guess, const Tensor& guess_k, const Tensor& branch_tokens,
                  const Tensor& length, const Tensor& last_token, const Tensor& max_length, const Tensor& done,
                  const Tensor& parity, const Tensor& draft_length, const Tensor& draft_last_token, const Tensor& spec_tokens,
                  const Tensor& spec_len, const Tensor& hit, const Tensor& q_address) {
  check(outcome, "outcome", at::kInt, {-1, 2, 2});
  const int64_t slots = outcome.size(0);
  check(guess, "guess", at::kInt, {slots, -1});
  const int64_t budget = guess.size(1);
  check(guess_k, "guess_k", at::kInt, {slots, budget});
  check(branch_tokens, "branch_tokens", at::kInt, {slots, budget, -1});
  const int64_t lookahead = branch_tokens.size(2);
  check(length, "length", at::kInt, {slots});
  check(last_token, "last_token", at::kInt, {slots});
  check(max_length, "max_length", at::kInt, {slots});
  check(done, "done", at::kByte, {slots});
  check(parity, "parity", at::kInt, {1});
  check(draft_length, "draft_length", at::kInt, {slots});
  check(draft_last_token, "draft_last_token", at::kInt, {slots});
  check(spec_tokens, "spec_tokens", at::kInt, {slots, lookahead});
  check(spec_len, "spec_len", at::kInt, {slots});
  check(hit, "hit", at::kByte, {slots});
  check(q_address, "q_address", at::kInt, {slots});
  int32_t* half = parity.mutable_data_ptr<int32_t>();
  TORCH_CHECK(*half == 0 || *half == 1, "parity must be 0 or 1, not ", *half);

  for (int64_t s = 0; s < slots; ++s) {
    const int32_t* decided = outcome.const_data_ptr<int32_t>() + (s * 2 + *half) * 2;
    const int32_t* counts = guess_k.const_data_ptr<int32_t>() + s * budget;
    const int32_t* guesses = guess.const_data_ptr<int32_t>() + s * budget;
    const bool finished = done.const_data_ptr<uint8_t>()[s] != 0;
    int64_t branch = budget;
    for (int64_t b = 0; b < budget && branch == budget && decided[0] >= 0 && !finished; ++b)
      if (counts[b] == decided[0] && guesses[b] == decided[1]) branch = b;

    const int32_t n = length.const_data_ptr<int32_t>()[s];
    draft_length.mutable_data_ptr<int32_t>()[s] = n;
    draft_last_token.mutable_data_ptr<int32_t>()[s] = last_token.const_data_ptr<int32_t>()[s];
    // A round commits up to spec_len + 1 tokens behind the n + 1 there are.
    const int64_t room = max_length.const_data_ptr<int32_t>()[s] - n - 2;
    spec_len.mutable_data_ptr<int32_t>()[s] = finished ? 0 : static_cast<int32_t>(std::clamp<int64_t>(room, 0, lookahead));
    hit.mutable_data_ptr<uint8_t>()[s] = branch < budget ? 1 : 0;
    q_address.mutable_data_ptr<int32_t>()[s] = static_cast<int32_t>(branch);
    int32_t* speculation = spec_tokens.mutable_data_ptr<int32_t>() + s * lookahead;
    if (branch < budget) {
      std::copy_n(branch_tokens.const_data_ptr<int32_t>() + (s * budget + branch) * lookahead, lookahead, speculation);
    } else {
      std::fill_n(speculation, lookahead, 0);
    }
  }
  *half ^= 1;
}

}  // namespace

TORCH_LIBRARY_IMPL(ssd, CPU, m) { m.impl("cache_lookup", cache_lookup); }

}  // namespace ssd
